"""`python -m experiments`: which experiments there are, and their presets."""

from experiments import carry, gallery, report, ticket
from experiments.all import EXPERIMENTS

if __name__ == "__main__":
    for one in EXPERIMENTS:
        print(f"python -m experiments.{one.name} [PRESET]: {one.about.splitlines()[0]}")
        print(f"    {', '.join(one.presets)}")
    about = (ticket.__doc__ or "").splitlines()[0]
    print(f"python -m experiments.ticket inspect|verify FILE: {about}")
    about = (report.__doc__ or "").splitlines()[0]
    print(f"python -m experiments.report FOLDER [FOLDER ...]: {about}")
    about = (carry.__doc__ or "").splitlines()[0]
    print(f"python -m experiments.carry pack|unpack: {about}")
    about = (gallery.__doc__ or "").splitlines()[0]
    print(f"python -m experiments.gallery: {about}")
