"""The policy engine and a plain table give the same answers."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from services.gateway.policy import NO_RULE, POLICY_RPCS, CedarPolicy, PolicyError
from services.gateway.purposes import PURPOSES
from services.gateway.users import ROLES
from tests.support.policy_table import ANY, Rule, Table

_MODELS = ["heart", "lung", "breast-cancer", "a.b_c-1"]


def _some(values: list[str], *, star: bool = True) -> st.SearchStrategy[frozenset[str]]:
    several = st.frozensets(st.sampled_from(sorted(values)), min_size=1, max_size=3)
    return several | st.just(frozenset({ANY})) if star else several


_RULES = st.builds(
    Rule,
    name=st.just(""),
    permit=st.booleans(),
    roles=_some(list(ROLES), star=False),
    rpcs=_some(sorted(POLICY_RPCS)),
    models=_some(_MODELS),
    purposes=_some(sorted(PURPOSES)),
)


@st.composite
def tables(draw: st.DrawFn) -> Table:
    rules = draw(st.lists(_RULES, max_size=8))
    return Table(tuple(replace(rule, name=f"r{number}") for number, rule in enumerate(rules)))


@settings(max_examples=150, deadline=None)
@given(
    tables(),
    st.lists(
        st.tuples(
            st.lists(st.sampled_from(ROLES), max_size=3, unique=True),
            st.sampled_from(sorted(POLICY_RPCS)),
            st.sampled_from([*_MODELS, ""]),
            st.sampled_from([*sorted(PURPOSES), ""]),
        ),
        min_size=1,
        max_size=20,
    ),
)
def test_the_engine_agrees_with_the_table(
    table: Table, questions: list[tuple[list[str], str, str, str]]
) -> None:
    policy = CedarPolicy(table.text())
    for roles, rpc, model, purpose in questions:
        decision = policy.decide(roles, rpc, model, purpose)
        permitted, rule = table.decide(roles, rpc, model, purpose)
        assert (decision.permitted, decision.rule) == (permitted, rule or NO_RULE)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_a_policy_set_or_refused(text: str) -> None:
    try:
        CedarPolicy(text)
    except PolicyError:
        return
