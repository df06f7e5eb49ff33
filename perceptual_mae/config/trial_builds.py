"""Networks built without memory, to learn what their constructors refuse."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from perceptual_mae.config.mistake import Mistake
from perceptual_mae.config.schema import RunConfig
from perceptual_mae.generator.masked_autoencoder import MaskedAutoencoder
from perceptual_mae.images import pyramid_sizes


def trial_generator(config: RunConfig) -> MaskedAutoencoder:
    """Return the generator; on the meta device where that is the default."""
    image = config.data.image
    return MaskedAutoencoder(image.size, image.channels, image.mean, image.std, **config.generator.options())


def trial_discriminator(config: RunConfig) -> Any:
    """Return the discriminator; on the meta device where that is the default."""
    section, image = config.discriminator, config.data.image
    assert section is not None
    made_of = (trial_generator(config).encoder,) if section.reads_encoder else ()
    return section.build(*made_of, pyramid_sizes(image.size), image.channels)


def refusals(build: Callable[[], object], keys: tuple[str, ...]) -> Iterator[Mistake]:
    """Yield what a constructor refuses as a mistake of these keys; it gets no memory."""
    try:
        with torch.device("meta"):
            build()
    except (ValueError, TypeError, OverflowError) as error:
        yield Mistake(keys, f"cannot be built: {' '.join(str(error).split())}")
    except RuntimeError as error:
        if "numel" in str(error) or "overflow" in str(error):
            yield Mistake(
                keys, "cannot be built: its tensors would have more values than can be counted; make it smaller"
            )
    except (AttributeError, ImportError):
        pass  # a class of the user's own may not build without memory, a library not be here: it is built later
