"""Reader: the bytes of one part of a packet, taken one after another and never beyond its end."""

from solar.codec.container import PacketError


class Reader:
    """Takes bytes from the front of `data`; `short` says what is wrong where there are too few."""

    def __init__(self, data: bytes, short: str):
        self._data, self._short, self._at = data, short, 0

    @property
    def left(self) -> int:
        """How many bytes were not taken yet."""
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        """The next `count` bytes. Raises PacketError where there are fewer."""
        if count > self.left:
            raise PacketError(f"packet is altered: {self._short}")
        self._at += count
        return self._data[self._at - count : self._at]
