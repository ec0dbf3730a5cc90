"""What can happen to a whole device. Apart from the schema of events, which agents never need to load."""

from typing import Final, Literal, get_args

__all__ = ["DEVICE_ACTIONS", "DeviceAction"]

DeviceAction = Literal["pause", "resume", "kill", "restart"]
DEVICE_ACTIONS: Final[tuple[DeviceAction, ...]] = get_args(DeviceAction)
