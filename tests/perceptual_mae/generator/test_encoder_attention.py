"""What the class token of the last block looks at."""

import pytest
import torch

from perceptual_mae.generator.encoder import Encoder


@pytest.mark.parametrize("relative_positions", [False, True])
@pytest.mark.parametrize("depth", [1, 3])
def test_class_attention_is_what_the_last_block_puts_into_its_class_token(depth, relative_positions):
    torch.manual_seed(0)
    sizes = {"patch_size": 8, "width": 16, "depth": depth, "heads": 4}
    encoder = Encoder((16, 24), 3, [0.5] * 3, [0.2] * 3, **sizes, relative_positions=relative_positions).double()
    for name, parameter in encoder.named_parameters():
        if name.endswith("relative_position_bias_table"):
            torch.nn.init.normal_(parameter)
    images = torch.rand(2, 3, 16, 24, dtype=torch.float64)
    attention = encoder.class_attention(images)
    assert attention.shape == (2, 4, 1 + 6)
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 4, dtype=torch.float64))

    outputs = {}
    last = encoder.blocks[-1].attn
    handles = [
        last.qkv.register_forward_hook(lambda module, inputs, output: outputs.update(qkv=output)),
        last.register_forward_hook(lambda module, inputs, output: outputs.update(mixed=output)),
    ]
    encoder(images)
    for handle in handles:
        handle.remove()
    values = outputs["qkv"].split(16, dim=-1)[2].view(2, 7, 4, 4).transpose(1, 2)
    mixed = (attention[:, :, None] @ values).flatten(1)  # the class token's row, head after head
    torch.testing.assert_close(last.proj(mixed), outputs["mixed"][:, 0])

    whole = encoder.last_attention(images)
    assert torch.equal(whole[:, :, 0], attention)
    torch.testing.assert_close(last.proj((whole @ values).transpose(1, 2).flatten(2)), outputs["mixed"])
