"""The policy engine and a plain table give the same answers."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from services.gateway.policy import NO_RULE, POLICY_RPCS, CedarPolicy, PolicyError
from services.gateway.policy.explain import differences
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


@settings(max_examples=8, deadline=None)
@given(tables(), tables(), st.sampled_from(ROLES), st.sampled_from(sorted(POLICY_RPCS)))
def test_differences_are_those_of_all_questions(
    one: Table, other: Table, role: str, rpc: str
) -> None:
    before, after = CedarPolicy(one.text()), CedarPolicy(other.text())
    rows = [row for row in differences(before, after)[0] if (row.role, row.rpc) == (role, rpc)]
    said = {(row.model, purpose): row.opened for row in rows for purpose in row.purposes}
    named = {name for kind, name in before.named | after.named if kind == "Model"}
    for model in ["", "nobody-names-it", *_MODELS]:
        for purpose in ["", *sorted(PURPOSES)]:
            old = one.decide((role,), rpc, model, purpose)[0]
            new = other.decide((role,), rpc, model, purpose)[0]
            shown = model if model in named or not model else "*"
            assert said.get((shown, purpose)) == (None if old == new else new)
