"""`python -m launch.torchrun --nproc_per_node N -m hnpretrain.train CONFIG [key=value ...]`"""

from hnpretrain.cli import run_command
from hnpretrain.train.commands import train

if __name__ == "__main__":
    run_command(train)
