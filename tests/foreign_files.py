"""Changes to folders that other systems have saved."""

import json


def edit(place, **changes):
    """Change fields of a JSON file; those of its "config" by their name with a dot."""
    settings = json.loads(place.read_text())
    for key, value in changes.items():
        target = settings
        *outer, last = key.split("__")
        for name in outer:
            target = target[name]
        target[last] = value
    place.write_text(json.dumps(settings))
