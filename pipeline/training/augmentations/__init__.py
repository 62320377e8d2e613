"""One file for each augmentation of training images: a class `Augmentation(size, *, ...)`, where `size` is the height
and width of the network's input. The keyword arguments, with their annotated ranges, are the keys in params.yaml. It
raises `ValueError` for values that are impossible together.

Its random numbers are given to it, and belong to (seed, epoch, position), so neither loader processes nor a resumed run
can change them. It has these attributes:

- `purpose`: the name of its random numbers, and `draws`: how many of them each image gets, uniform in [0, 1).
- `on_host` (optional): true if it works on the CPU only. All augmentations of the recipe are then made by the loader.

It has one of these methods:

- `boxes(sizes, draws)` for images of any size, in numpy: the box of each image that is cut out and resized to the
  input, as in `random_resized_crop`. Only the first augmentation may have it. Without it, images must have the input's
  size.
- `__call__(images, draws)`: changed images, uint8 (batch, channels, size, size), of images of the same shape, RGB or
  grey. `draws` are float64 (batch, draws) on the CPU, in pinned memory if the images are on a GPU, so that
  `draws.to(images.device, non_blocking=True)` does not wait. A function of both alone.
"""
