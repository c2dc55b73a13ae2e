import numpy as np
import pytest

from elasticlm import ElasticStructure, InputError, Structure
from elasticlm.model.configuration import ElasticConfig
from elasticlm.model.families import family_of
from elasticlm.model.structure import parse_level, parse_levels


def test_levels_keep_the_best_units_of_the_whole_model():
    heads = np.array([[0.9, 0.1], [0.8, 0.7]])
    neurons = np.array([[4.0, 1.0, 2.0, 3.0], [8.0, 7.0, 6.0, 5.0]])
    structures, head_order, neuron_order = ElasticStructure.from_scores(heads, neurons, [50, 100])
    assert structures[50] == Structure((1, 1), (0, 4))
    assert structures[100] == Structure((2, 2), (4, 4))
    assert head_order.tolist() == [[0, 1], [0, 1]]
    assert neuron_order.tolist() == [[0, 3, 2, 1], [0, 1, 2, 3]]


@pytest.mark.parametrize(("level", "count"), [(50, 6), (45, 5), (40, 5), (12.5, 2), (5, 1), (0.1, 1), (100, 12)])
def test_a_level_keeps_its_share_rounded_half_up_and_at_least_one(level, count):
    structures, _, _ = ElasticStructure.from_scores(np.ones((3, 4)), np.ones((3, 4)), [level])
    assert sum(structures[level].heads) == sum(structures[level].neurons) == count


def test_ties_go_to_the_lower_layer_then_to_the_lower_index():
    structures, order, _ = ElasticStructure.from_scores(np.ones((3, 4)), np.ones((3, 4)), [50])
    assert structures[50].heads == (4, 2, 0)
    assert order.tolist() == [[0, 1, 2, 3]] * 3


def test_levels_that_are_not_nested_are_refused():
    with pytest.raises(InputError, match="level 10 is not nested in level 50"):
        ElasticStructure({50: Structure((1, 2), (3, 3)), 10: Structure((2, 1), (1, 1))})


def test_levels_survive_json():
    whole = Structure((2, 2), (4, 4))
    for top in (False, True):
        structures = ElasticStructure({12.5: Structure((1, 0), (2, 0)), 100: whole}, top=top)
        assert list(structures.to_json()) == ["100", "12.5"]
        assert (structures.to_json()["100"] == {"weights": "teacher"}) == top
        found = ElasticStructure.from_json(structures.to_json(), whole)
        assert (dict(found), found.top) == (dict(structures), top)
        assert found.nested.levels == ((12.5,) if top else (100, 12.5))


@pytest.mark.parametrize(("level", "weights"), [("50", "teacher"), ("100", "other"), ("100", "teacher")])
def test_only_level_100_above_others_is_the_teacher(level, weights):
    with pytest.raises(InputError, match="level"):
        ElasticStructure.from_json({level: {"weights": weights}}, Structure((2, 2), (4, 4)))


@pytest.mark.parametrize("text", ["0", "-5", "100.1", "nan", "x", ""])
def test_levels_outside_the_range_are_refused(text):
    with pytest.raises(InputError, match="expected a percentage"):
        parse_level(text)


def test_lists_of_levels_are_sorted_and_free_of_doubles():
    assert parse_levels("5, 50,12.5,100") == (100, 50, 12.5, 5)
    with pytest.raises(InputError, match="duplicate level"):
        parse_levels("50,50.0")


def test_parameters_and_flops_count_what_the_slices_hold():
    structure, bert = Structure((1, 0), (3, 2)), family_of("bert")
    config = ElasticConfig(hidden_size=8, num_attention_heads=2)
    assert bert.prunable_parameters(config, structure) == (3 * (8 * 4 + 4) + 4 * 8) + 5 * (8 + 1 + 8)
    per_token = 4 * 8 * 4 + 2 * 8 * 5 + 2 * 4 * 6  # projections, neurons, attention over 6 tokens
    assert bert.flops(config, structure, tokens=6) == 2 * 6 * per_token
    assert bert.paper_gflops(config, structure) == pytest.approx(128 * (4 * 8 * 4 + 2 * 8 * 5) / 1e9)


@pytest.mark.parametrize(
    ("layers", "width", "printed"),
    [(12, 768, 10.9), (6, 768, 5.44), (2, 768, 1.81), (4, 384, 0.91), (3, 384, 0.68)],
)
def test_gflops_are_those_of_the_papers_tables(layers, width, printed):
    """10.87 for BERT-base; the paper's tables print three digits, or two decimals."""
    heads, neurons = width // 64, 4 * width
    config = ElasticConfig(hidden_size=width, num_attention_heads=heads, intermediate_size=neurons)
    found = family_of("bert").paper_gflops(config, Structure((heads,) * layers, (neurons,) * layers))
    assert found == pytest.approx(layers * (4 * width**2 + 2 * width * neurons) * 128 / 1e9)
    assert found == pytest.approx(printed, abs=0.05 if printed > 10 else 0.005)


def test_the_papers_gflops_of_shares_are_shares_of_the_whole():
    config, bert = ElasticConfig(), family_of("bert")
    whole = bert.paper_gflops(config, config.whole)
    for percent, printed in ((50, 5.44), (30, 3.26), (15, 1.63), (10, 1.09), (33, 3.59)):  # 33: the paper's 4L;768H
        assert percent / 100 * whole == pytest.approx(printed, abs=0.005)
    assert bert.paper_gflops(config, Structure((12,) * 4, (3072,) * 4)) == pytest.approx(3.62, abs=0.005)
    random = np.random.default_rng(0)
    structures, *_ = ElasticStructure.from_scores(random.random((12, 12)), random.random((12, 3072)), [50, 30, 15, 10])
    for percent, kept in structures.items():  # whole heads: 22 of 144 at 15%, 14 at 10%
        assert bert.paper_gflops(config, kept) == pytest.approx(percent / 100 * whole, abs=0.011)
