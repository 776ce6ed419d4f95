"""Why rewinding works: subnetworks are matching where they are stable to SGD noise."""
