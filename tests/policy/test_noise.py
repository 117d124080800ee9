"""Noise belongs to an image: the same identity, the same stream, whatever is drawn beside it."""

import hashlib

import torch

from rlcm.policy.noise import draw, image_seed, stream


def test_image_seed_is_the_hash_of_the_identity():
    expected = int.from_bytes(hashlib.blake2b(b"7:2:branch:11", digest_size=8).digest(), "big") >> 1
    assert image_seed(7, 2, "branch", 11) == expected
    assert 0 <= expected < 2**63


def test_identities_do_not_collide():
    seeds = [image_seed(run, number, index) for run in range(12) for number in range(12) for index in range(12)]
    assert len(set(seeds)) == len(seeds)
    assert image_seed(1, 23) != image_seed(12, 3)


def test_draw_takes_the_next_numbers_of_every_stream():
    streams = [stream(3), stream(4)]
    first, second = draw(streams, (2, 5)), draw(streams, (2, 5))
    for row, seed in enumerate((3, 4)):
        generator = torch.Generator().manual_seed(seed)
        assert torch.equal(first[row], torch.randn(2, 5, generator=generator))
        assert torch.equal(second[row], torch.randn(2, 5, generator=generator))
    assert torch.equal(draw([stream(9), stream(3)], (2, 5))[1], first[0])
