"""AES-XTS over blocks of 512 bytes (IEEE 1619), as BitVisor's `aes-xts` has it: two AES-128 keys, tweaked by the block's number."""

from ..heap import Panic

__all__ = ["BLOCK", "decrypt", "encrypt", "first_encrypted"]

BLOCK = 512
"""Bytes of a data unit, which is a logical block."""


def first_encrypted(blocks: int) -> int:
    """The first encrypted block of a disk of `blocks` blocks: the upper half is encrypted, to its end."""
    return blocks // 2


def encrypt(key: bytes, lba: int, data: bytes, first: int) -> bytes:
    """What lies on the disk from block `lba` on where the guest has written `data`; blocks below `first` stay as they are."""
    return _carried(key, lba, data, first, True)


def decrypt(key: bytes, lba: int, data: bytes, first: int) -> bytes:
    """What the guest reads from block `lba` on where `data` lie on the disk."""
    return _carried(key, lba, data, first, False)


def _carried(key: bytes, lba: int, data: bytes, first: int, inward: bool) -> bytes:
    plain = min(max(first - lba, 0) * BLOCK, len(data))
    parts = [data[:plain]]
    if plain < len(data):
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
        if key[:len(key) // 2] == key[len(key) // 2:]:
            raise Panic("nvme: the storage key is none: AES-XTS wants two different halves")
        for at in range(plain, len(data), BLOCK):
            unit = Cipher(algorithms.AES(key), modes.XTS((lba + at // BLOCK).to_bytes(16, "little")))
            context = unit.encryptor() if inward else unit.decryptor()
            parts.append(context.update(data[at:at + BLOCK]))
    return b"".join(parts)
