"""Which flows a worker of which pool loads."""

from deployments.provision import GPU, POOLS, UPKEEP, flow_modules


def test_sessions_are_with_the_engine_and_upkeep_is_not() -> None:
    assert [pool for pool, *_ in POOLS] == [UPKEEP, GPU]
    assert set(flow_modules(GPU)) == {"flows.verify_session", "flows.evaluate_faces"}
    assert set(flow_modules(UPKEEP)) == {"flows.sweep_sessions", "flows.purge_sessions"}
    assert set(flow_modules()) == {*flow_modules(GPU), *flow_modules(UPKEEP)}
