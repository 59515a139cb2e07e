"""The verb of the plan stage."""

from openmai.base.verb import Verb

VERBS = {"": Verb("openmai.plan.config:PlanConfig", "openmai.plan.plan:plan", "what a model costs: parameters, FLOPs, memory, days, money")}
