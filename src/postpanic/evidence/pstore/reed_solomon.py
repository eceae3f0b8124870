"""
Reed-Solomon codes over GF(256), as the kernel's ramoops has them.

The field is that of the polynomial 0x11d, the generator's first root is 1, its
roots are consecutive powers of the primitive element 2; blocks are shortened.
A decoder of our own: what has to be quick here is to see that a block is
clean, and a remainder kept in one integer does that without a compiled module.

Sources: the kernel's ``fs/pstore/ram_core.c`` (``init_rs(8, 0x11d, 0, 1, ecc_size)``),
``lib/reed_solomon/encode_rs.c``. Method: Berlekamp-Massey, Chien, Forney.
"""

from __future__ import annotations

from functools import cache

__all__ = ["MOST_PARITY_BYTES", "ReedSolomon", "reed_solomon"]

_POLYNOMIAL = 0x11D
_ORDER = 255
MOST_PARITY_BYTES = 254
"""A word has 255 symbols."""


def _make_tables() -> tuple[list[int], list[int]]:
    power, logarithm = [0] * (2 * _ORDER), [0] * 256
    value = 1
    for exponent in range(_ORDER):
        power[exponent] = power[exponent + _ORDER] = value
        logarithm[value] = exponent
        value <<= 1
        if value & 0x100:
            value ^= _POLYNOMIAL
    return power, logarithm


_POWER, _LOG = _make_tables()


def _times(left: int, right: int) -> int:
    return _POWER[_LOG[left] + _LOG[right]] if left and right else 0


def _evaluate(polynomial: list[int], exponent: int) -> int:
    """Evaluate a polynomial, lowest coefficient first, at 2**exponent."""
    value = 0
    for coefficient in reversed(polynomial):
        if value:
            value = _POWER[(_LOG[value] + exponent) % _ORDER]
        value ^= coefficient
    return value


class ReedSolomon:
    """
    A code of so many bytes of parity; half as many wrong bytes of a word are put right.

    >>> code = ReedSolomon(16)
    >>> parity = code.encode(b"Oops#1 Part1")
    >>> code.correct(b"Oups#1 Part7", parity)
    (b'Oops#1 Part1', 2)
    """

    def __init__(self, parity_bytes: int) -> None:
        self.parity_bytes = parity_bytes
        generator = [1]
        for root in range(parity_bytes):
            # Times (x - 2**root), highest coefficient first.
            shifted = [*generator, 0]
            for place, coefficient in enumerate(generator):
                shifted[place + 1] ^= _times(coefficient, _POWER[root])
            generator = shifted
        self._top = 8 * (parity_bytes - 1)
        self._mask = (1 << (8 * parity_bytes)) - 1
        self._feedback = [
            int.from_bytes(bytes(_times(factor, part) for part in generator[1:]), "big") for factor in range(256)
        ]

    def _remainder(self, data: bytes) -> int:
        state, top, mask, feedback = 0, self._top, self._mask, self._feedback
        for byte in data:
            state = ((state << 8) & mask) ^ feedback[(state >> top) ^ byte]
        return state

    def encode(self, data: bytes) -> bytes:
        """Make the parity of a block of at most ``255 - parity_bytes`` bytes."""
        return self._remainder(data).to_bytes(self.parity_bytes, "big")

    def correct(self, data: bytes, parity: bytes) -> tuple[bytes, int] | None:
        """
        Put a block right.

        Returns
        -------
        tuple of bytes and int, or None
            The block and how many bytes of it and its parity were wrong; None: more than can be put right.
        """
        remainder = self._remainder(data) ^ int.from_bytes(parity, "big")
        if not remainder:
            return data, 0
        # The word and its remainder have the same values at the roots of the generator.
        low_first = list(remainder.to_bytes(self.parity_bytes, "big"))[::-1]
        syndromes = [_evaluate(low_first, root) for root in range(self.parity_bytes)]
        locator = _find_locator(syndromes)
        wrong_count = len(locator) - 1
        if 2 * wrong_count > self.parity_bytes:
            return None
        length = len(data) + self.parity_bytes
        places = [place for place in range(length) if not _evaluate(locator, (_ORDER - place) % _ORDER)]
        if len(places) != wrong_count:
            return None
        word = bytearray(data + parity)
        for place, error in zip(places, _find_errors(syndromes, locator, places), strict=True):
            word[length - 1 - place] ^= error
        fixed = bytes(word[: len(data)])
        if self._remainder(fixed) != int.from_bytes(word[len(data) :], "big"):
            return None
        return fixed, wrong_count


def _find_locator(syndromes: list[int]) -> list[int]:
    """Find the polynomial whose roots are the inverses of the places of the errors (Berlekamp and Massey)."""
    locator, previous = [1], [1]
    length, shift, last = 0, 1, 1
    for step, syndrome in enumerate(syndromes):
        discrepancy = syndrome
        for place in range(1, min(length, len(locator) - 1) + 1):
            discrepancy ^= _times(locator[place], syndromes[step - place])
        if not discrepancy:
            shift += 1
            continue
        factor = _POWER[(_LOG[discrepancy] - _LOG[last]) % _ORDER]
        update = [0] * shift + [_times(factor, coefficient) for coefficient in previous]
        size = max(len(locator), len(update))
        added = [(locator[i] if i < len(locator) else 0) ^ (update[i] if i < len(update) else 0) for i in range(size)]
        if 2 * length <= step:
            previous, last, length, shift = locator, discrepancy, step + 1 - length, 1
        else:
            shift += 1
        locator = added
    while len(locator) > 1 and not locator[-1]:
        locator.pop()
    return locator


def _find_errors(syndromes: list[int], locator: list[int], places: list[int]) -> list[int]:
    """Find what was added to the bytes at these places, counted from the end of the word (Forney)."""
    size = len(syndromes)
    evaluator = [0] * size
    for i, coefficient in enumerate(locator):
        for j in range(size - i):
            evaluator[i + j] ^= _times(coefficient, syndromes[j])
    # The derivative has the odd terms alone: the field is of characteristic 2.
    derivative = [coefficient if i % 2 else 0 for i, coefficient in enumerate(locator)][1:]
    errors = []
    for place in places:
        inverse = (_ORDER - place) % _ORDER
        below = _evaluate(derivative, inverse)
        above = _times(_evaluate(evaluator, inverse), _POWER[place % _ORDER])
        errors.append(_POWER[(_LOG[above] - _LOG[below]) % _ORDER] if above and below else 0)
    return errors


@cache
def reed_solomon(parity_bytes: int) -> ReedSolomon:
    """Give the code of so many bytes of parity."""
    return ReedSolomon(parity_bytes)
