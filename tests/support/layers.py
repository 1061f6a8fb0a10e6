"""The layers of the package."""

LAYERS = [
    {"types", "errors", "stopwatch", "__init__"},
    {"algo", "metrics", "verify", "schedules"},
    {"distributed", "data", "models"},
    {"sampling"},
    {"rollout"},
    {"training", "evaluation"},
    {"module", "supervised", "run_folder", "presets"},
    {"callbacks", "analysis"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
"""A part may import from parts in earlier sets and from itself, nothing else of forklight."""

LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
