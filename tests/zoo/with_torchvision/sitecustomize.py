"""On the path of every process of `make test-vision`: jobs, their planners and the tests can import torchvision."""

from torchvision_names import torchvision_can_be_imported  # pyright: ignore[reportMissingImports]

torchvision_can_be_imported()
