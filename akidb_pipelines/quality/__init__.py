"""Checks generated from the Cedar sandbox schema, by three engines, told in one form: `result.RuleResult`."""
