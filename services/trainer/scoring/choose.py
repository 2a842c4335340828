"""Which scorer a group gets: the first rule that matches its channel and scenario, else the default. Pure."""

from __future__ import annotations

from fnmatch import fnmatchcase

from flywheel.scoring_settings import ScoringRule, ScoringSettings


def rule_for(settings: ScoringSettings, channel: str, scenario: str | None) -> ScoringRule:
    """Return the rule for a group, with the weights and the rubric that hold for it."""
    found = next(
        (
            rule
            for rule in settings.rules
            if fnmatchcase(channel, rule.channel) and fnmatchcase(scenario or "", rule.scenario)
        ),
        ScoringRule(scorer=settings.scorer),
    )
    return found.model_copy(
        update={"weights": found.weights or settings.weights, "rubric": found.rubric or settings.rubric}
    )


def only_recorded(settings: ScoringSettings, channel: str) -> bool:
    """Return whether every group of the channel is scored by its recorded reward, so that nothing has to be done."""
    rules = [rule.scorer for rule in settings.rules if fnmatchcase(channel, rule.channel)]
    return set(rules) | {settings.scorer} == {"recorded"}
