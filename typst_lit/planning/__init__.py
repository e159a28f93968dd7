"""What a fit will take, predicted before it starts: peak memory and step time for each batch size and policy."""

from typing import TYPE_CHECKING

from typst_lit._lazy import attach

if TYPE_CHECKING:
    from typst_lit.planning.fake_step import StepMemory as StepMemory
    from typst_lit.planning.fake_step import measure_fake_step as measure_fake_step
    from typst_lit.planning.planner import DEVICES as DEVICES
    from typst_lit.planning.planner import Device as Device
    from typst_lit.planning.planner import FitSpec as FitSpec
    from typst_lit.planning.planner import Planner as Planner
    from typst_lit.planning.planner import PlanOption as PlanOption
    from typst_lit.planning.planner import best_option as best_option

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "DEVICES": "typst_lit.planning.planner",
        "Device": "typst_lit.planning.planner",
        "FitSpec": "typst_lit.planning.planner",
        "PlanOption": "typst_lit.planning.planner",
        "Planner": "typst_lit.planning.planner",
        "StepMemory": "typst_lit.planning.fake_step",
        "best_option": "typst_lit.planning.planner",
        "measure_fake_step": "typst_lit.planning.fake_step",
    },
)
