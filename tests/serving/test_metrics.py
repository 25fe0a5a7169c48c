"""Prometheus reads what is told of a server."""

import pytest

from ragjax.serving.metrics import Histogram, Metrics


def test_prometheus_own_parser_reads_all_of_it():
    parser = pytest.importorskip("prometheus_client.parser")
    metrics, odd = Metrics(), 'a "b"\\\nc'
    metrics.requests.add(outcome="completed")
    metrics.requests.add(2, outcome="full")
    metrics.waiting.follow(lambda: 3, model=odd)
    for seconds, times in ((0.01, 1), (0.02, 2), (1000, 1)):
        metrics.first_token.observe(seconds, times, model="m")
    found = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in parser.text_string_to_metric_families(metrics.text())
        for sample in family.samples
    }
    assert found["ragjax_requests_total", ("outcome", "full")] == 2
    assert found["ragjax_queue_length", ("model", odd)] == 3
    name = "ragjax_time_to_first_token_seconds"
    assert found[f"{name}_bucket", ("le", "0.01"), ("model", "m")] == 1
    assert found[f"{name}_bucket", ("le", "0.025"), ("model", "m")] == 3
    assert found[f"{name}_bucket", ("le", "60"), ("model", "m")] == 3
    assert found[f"{name}_bucket", ("le", "+Inf"), ("model", "m")] == 4
    assert found[f"{name}_count", ("model", "m")] == 4
    assert found[f"{name}_sum", ("model", "m")] == pytest.approx(1000.05)


def test_a_value_on_a_bound_is_not_above_it():
    histogram = Histogram("h", "Help.", (1, 2))
    histogram.observe(1)
    assert 'h_bucket{le="1"} 1' in list(histogram.samples())
