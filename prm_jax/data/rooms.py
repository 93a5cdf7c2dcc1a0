"""A small text game: walk through rooms, pick an object up, and bring it where it is wanted."""

import collections

from prm_jax.data.procedural import words
from prm_jax.errors import UserError
from prm_jax.rollouts.environments import Feedback

_ROOMS, _OBJECTS, _WAYS = "ABCDEFGHIJ", "pqrst", "nesw"


class Rooms:
    """Rooms in a random tree with a few extra ways; one object is wanted in another room.

    What is told first: ``bring q to C; A n=B w=D`` names the object, the goal, the room and its exits. Actions end
    with a new line: ``n`` walks, ``t`` takes, ``d`` drops. The answer names the room, its exits and what lies there.
    Dropping the object in the goal ends the episode with reward 1; dropping it elsewhere ends it with 0; an impossible
    action is answered by ``no``.

    Args:
      rooms: 3 to 10.
      objects: 1 to 5; one is wanted.
      extra: ways beyond those that connect all rooms.
    """

    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 :=>;,?!\n"
    max_turns = 12

    def __init__(self, rooms: int = 5, objects: int = 2, extra: int = 1) -> None:
        if not 3 <= rooms <= len(_ROOMS) or not 1 <= objects <= len(_OBJECTS) or extra < 0:
            raise UserError(
                f"a game of rooms has 3 to {len(_ROOMS)} rooms, 1 to {len(_OBJECTS)} objects and extra ways >= 0; "
                f"found {rooms}, {objects} and {extra}"
            )
        self.rooms, self.objects, self.extra = rooms, objects, extra

    def reset(self, seed: int) -> str:
        """See `Environment`."""
        stream = words("rooms", self.rooms, self.objects, self.extra, seed)
        self.exits: dict[str, dict[str, str]] = {room: {} for room in _ROOMS[: self.rooms]}
        names = list(self.exits)
        for index in range(1, self.rooms):
            self._connect(names[index], names[next(stream) % index], stream)
        for _ in range(self.extra):
            self._connect(names[next(stream) % self.rooms], names[next(stream) % self.rooms], stream)
        self.place = names[next(stream) % self.rooms]
        self.lying = {item: names[next(stream) % self.rooms] for item in _OBJECTS[: self.objects]}
        self.wanted = _OBJECTS[next(stream) % self.objects]
        others = [name for name in names if name != self.lying[self.wanted]]
        self.goal = others[next(stream) % len(others)]
        self.held = ""
        return f"bring {self.wanted} to {self.goal};\n{self._look()}"

    def step(self, action: str) -> Feedback:
        """See `Environment`."""
        word = action.strip()
        if word in self.exits[self.place]:
            self.place = self.exits[self.place][word]
        elif word == "t" and not self.held and self._here():
            self.held = self.wanted if self.wanted in self._here() else self._here()[0]
            del self.lying[self.held]
        elif word == "d" and self.held:
            right = self.held == self.wanted and self.place == self.goal
            return Feedback("", float(right), done=True)
        else:
            return Feedback(f"no;\n{self._look()}")
        return Feedback(self._look())

    def solution(self) -> list[str]:
        """The fewest actions from here."""
        if self.held and self.held != self.wanted:
            return ["d\n"]  # lost: whatever is dropped ends the episode
        actions, place = [], self.place
        if not self.held:
            actions += self._way(place, self.lying[self.wanted])
            place = self.lying[self.wanted]
            actions.append("t\n")
        return [*actions, *self._way(place, self.goal), "d\n"]

    def temptation(self) -> str | None:
        """To take whatever lies here, and to drop it on the way."""
        if self.held:
            return "d\n" if self.place != self.goal else None
        return "t\n" if self._here() and self.wanted not in self._here() else None

    def _connect(self, room: str, other: str, stream: "collections.abc.Iterator[int]") -> None:
        back = dict(zip("nesw", "swne", strict=True))
        ways = [way for way in _WAYS if way not in self.exits[room] and back[way] not in self.exits[other]]
        if room == other or other in self.exits[room].values() or not ways:
            return
        way = ways[next(stream) % len(ways)]
        self.exits[room][way], self.exits[other][back[way]] = other, room

    def _here(self) -> list[str]:
        return [item for item, room in self.lying.items() if room == self.place]

    def _look(self) -> str:
        exits = " ".join(f"{way}={room}" for way, room in sorted(self.exits[self.place].items()))
        lying = f" :{','.join(self._here())}" if self._here() else ""
        return f"{self.place} {exits}{lying}\n"

    def _way(self, start: str, end: str) -> list[str]:
        """The shortest way."""
        before: dict[str, tuple[str, str]] = {}
        queue = collections.deque([start])
        while queue and end not in before and queue[0] != end:
            room = queue.popleft()
            for way, other in self.exits[room].items():
                if other not in before and other != start:
                    before[other] = (room, way)
                    queue.append(other)
        path: list[str] = []
        while end != start:
            end, way = before[end]
            path.append(f"{way}\n")
        return path[::-1]
