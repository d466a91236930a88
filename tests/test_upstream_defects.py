"""What goes wrong in published code that trains decoders, and the tests that say what must hold for ours instead.

A defect is named by what must hold, with the systems in whose code it was read or run. Its tests are named by file and
function; a test here checks that each of them exists and is not switched off.
"""

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
PLAN, DEFECTS, WORLDS = "datasets/test_plan.py", "trainer/test_published_defects.py", "trainer/test_worlds.py"
RESUME, ENGINES, LOOP = "trainer/test_resume.py", "trainer/test_engines.py", "trainer/test_loop.py"


@dataclass(frozen=True)
class Rule:
    """What must hold, where it does not, and the tests of it: `file` then the functions in it."""

    holds: str
    broken_in: str
    tests: dict[str, tuple[str, ...]]


HEADS = [
    Rule(
        "a head belongs to a subject by name, not by its place in a list",
        "MindEye2, NeuralDiffuser, MindAligner",
        {
            "models/test_decoder.py": (
                "test_weights_load_by_subject_id_whatever_the_order_subjects_are_listed_in",
                "test_ridge_maps_load_by_subject_id_too",
                "test_a_subject_without_a_head_is_refused_by_name",
            ),
            DEFECTS: ("test_heads_are_the_same_by_subject_in_whatever_order_subjects_are_named",),
        },
    ),
    Rule(
        "a checkpoint tells its subjects, and one of other subjects is refused",
        "MindEye2",
        {
            "checkpoints_schema/test_schema.py": (
                "test_a_checkpoint_of_other_subjects_says_which_and_what_to_pass",
                "test_other_data_under_a_known_subject_are_refused_with_what_to_pass",
            ),
            "trainer/test_modes.py": ("test_a_subject_is_added_and_the_others_predict_as_before",),
        },
    ),
    Rule(
        "a new head has nothing of the heads before it, their bias included",
        "MindEye2",
        {
            DEFECTS: ("test_a_new_head_has_nothing_of_the_heads_before_it",),
            "models/test_decoder.py": ("test_new_subjects_leave_everything_shared_as_it_is",),
        },
    ),
    Rule(
        "weights that do not fit are refused, never left out in silence",
        "MindEye2, NeuroPictor",
        {
            "models/test_loading.py": ("test_weights_that_lack_a_tensor_are_refused",),
            "checkpoints_schema/test_schema.py": ("test_a_head_of_another_voxel_count_is_refused",),
            RESUME: ("test_a_recipe_of_another_shape_than_the_parents_is_refused",),
        },
    ),
    Rule(
        "a decoder comes back in the sizes it was saved in, whatever the defaults",
        "MindEye2",
        {
            "models/test_pretrained.py": (
                "test_a_decoder_comes_back_from_a_folder_equal_to_the_bit",
                "test_the_config_holds_every_size_that_a_recipe_may_set",
            )
        },
    ),
    Rule(
        "every step has a gradient for every subject's head, and what is fixed does not decay",
        "MoRE-Brain, UMBRAE",
        {
            PLAN: ("test_every_micro_batch_holds_every_subject_equally",),
            "trainer/test_objectives_ranks.py": (
                "test_every_parameter_has_a_gradient_at_every_step_whatever_counts",
            ),
            "trainer/test_modes.py": ("test_head_changes_nothing_that_people_share",),
        },
    ),
    Rule(
        "no layer is dead: each changes what is predicted, and each learns",
        "MindEye2, NeuralDiffuser, MindAligner, MoRE-Brain, SynBrain",
        {
            DEFECTS: ("test_every_layer_changes_what_is_predicted",),
            "trainer/test_objectives.py": (
                "test_every_parameter_has_a_gradient_after_one_backward_and_learns_within_two",
            ),
        },
    ),
]
LOSSES = [
    Rule(
        "the label of a mixed row points at its partner, across subjects and processes",
        "MindEye2",
        {
            "trainer/test_objectives_contrast.py": (
                "test_labels_of_mixed_rows_are_of_their_own_subjects_partner",
            ),
            "trainer/test_objectives_mixing.py": (
                "test_partners_are_of_the_same_subject_and_lane",
                "test_rows_are_mixed_alike_at_every_world_size",
                "test_responses_are_mixed_with_the_partners_of_their_labels",
            ),
        },
    ),
    Rule(
        "a row that is its own partner keeps its whole label",
        "MindEye2",
        {
            "trainer/test_objectives_contrast.py": (
                "test_a_row_that_is_its_own_partner_keeps_its_whole_label",
            ),
            "trainer/test_objectives_mixing.py": ("test_a_row_alone_in_its_lane_stays_as_it_is",),
        },
    ),
    Rule(
        "targets are mixed as the responses were",
        "MindEye2",
        {"trainer/test_objectives.py": ("test_targets_are_mixed_as_the_responses_were",)},
    ),
    Rule(
        "negatives come from the whole global batch, with gradients",
        "MindEye2",
        {
            "trainer/test_objectives_ranks.py": (
                "test_losses_and_gradients_of_several_processes_are_those_of_one",
            ),
            WORLDS: ("test_negatives_of_one_process_alone_would_be_told_from_those_of_all",),
        },
    ),
    Rule(
        "a picture twice in a batch is no negative of itself, and costs no batch",
        "MindEye2",
        {
            DEFECTS: ("test_a_batch_keeps_all_its_rows_though_pictures_come_twice",),
            "trainer/test_objectives.py": (
                "test_a_picture_alone_with_its_repeats_has_nothing_to_be_told_from",
            ),
        },
    ),
]
WORLD_SIZE = [
    Rule(
        "the learning rate at a step does not depend on the number of processes",
        "MindEye1, MindEye2, MindBridge, NeuralDiffuser, MoRE-Brain, through Accelerate",
        {
            WORLDS: ("test_the_learning_rate_is_the_same_at_every_step_to_the_bit",),
            "trainer/test_schedules.py": (
                "test_the_rate_knows_nothing_of_workers_lanes_or_batch",
                "test_a_run_has_its_rate_at_a_step_however_it_is_split_or_resumed",
            ),
        },
    ),
    Rule(
        "the number of steps, their rows and their losses do not depend on the number of processes",
        "MindEye1, MindEye2",
        {
            WORLDS: ("test_losses_norms_and_validation_are_those_of_one_process_at_every_step",),
            PLAN: ("test_the_union_over_ranks_is_the_same_at_every_world_size",),
        },
    ),
    Rule(
        "every process applies the averaged gradient, through the engine and not past it",
        "MindEye2, and DistributedDataParallel when its module is called",
        {
            WORLDS: ("test_applied_updates_are_those_of_adamw_in_float64",),
            ENGINES: ("test_loss_and_averaged_gradients_of_two_processes_are_those_of_one_in_float64",),
        },
    ),
    Rule(
        "each process reads its own rows, of subjects of any width",
        "MindEye2 through Accelerate, which reads on rank 0 and sends",
        {
            "trainer/test_batches.py": (
                "test_all_ranks_together_read_the_rows_and_noise_that_one_process_reads",
            ),
            "datasets/test_dataset.py": ("test_a_rank_opens_only_the_shards_of_its_lanes_each_once",),
        },
    ),
    Rule(
        "a batch that does not divide is refused, not cut",
        "MindEye2",
        {
            LOOP: ("test_a_layout_that_does_not_divide_is_refused_with_what_would",),
            PLAN: ("test_what_cannot_be_planned_is_refused_with_the_way_out",),
        },
    ),
    Rule(
        "validation is computed by all processes alike, so none waits for another",
        "MindEye2",
        {WORLDS: ("test_losses_norms_and_validation_are_those_of_one_process_at_every_step",)},
    ),
]
CHECKPOINTS = [
    Rule(
        "the optimiser's state is saved whole at every ZeRO stage, for any number of processes",
        "MindEye2, NeuralDiffuser, MoRE-Brain",
        {
            ENGINES: (
                "test_a_saved_and_loaded_engine_goes_on_as_if_it_had_not_stopped",
                "test_what_two_processes_saved_one_process_goes_on_with",
            ),
            WORLDS: ("test_finished_weights_averages_and_moments_are_those_of_one_process",),
        },
    ),
    Rule(
        "all processes save together and fail together, so that none hangs",
        "DeepSpeed's save called on rank 0 alone",
        {
            "trainer/test_full_disk.py": ("test_the_other_ranks_stop_resumable_too",),
            ENGINES: ("test_two_processes_that_resume_a_pretraining_end_where_they_would_have",),
        },
    ),
    Rule(
        "a save that fails stops the run and is told",
        "MindEye1, MindBridge",
        {
            LOOP: ("test_a_failure_while_saving_leaves_nothing_half_written",),
            "trainer/test_full_disk.py": (
                "test_a_disk_that_fills_at_any_moment_of_a_save_leaves_the_last_good_checkpoint",
            ),
        },
    ),
    Rule(
        "a resumed run does each step once, at its own learning rate",
        "MindEye1, MindBridge; MindEye2 cannot resume",
        {
            RESUME: (
                "test_finetuning_killed_at_any_step_and_resumed_equals_never_killed",
                "test_every_step_stands_once_in_the_metrics_after_two_kills",
            ),
            WORLDS: (
                "test_a_group_killed_at_random_steps_ends_as_one_that_was_not_to_the_bit",
                "test_every_step_stands_once_in_the_records_of_a_run_that_was_stopped",
            ),
        },
    ),
    Rule(
        "a resumed run stands in wandb once, without a step twice",
        "MindEye2",
        {
            "trainer/test_watch.py": (
                "test_a_resumed_online_run_is_sent_no_step_twice_and_what_it_missed",
                "test_after_two_kills_wandbs_own_files_hold_every_step_once_with_the_values_of_the_lines",
            )
        },
    ),
    Rule(
        "the same command goes on from what is there and writes over nothing",
        "MindEye1",
        {
            RESUME: (
                "test_a_finished_run_is_not_trained_again",
                "test_a_run_folder_of_another_configuration_is_refused_with_the_key",
            ),
            "checkpoints_schema/test_commit.py": (
                "test_other_contents_never_replace_a_committed_step",
                "test_a_damaged_step_is_replaced",
            ),
        },
    ),
    Rule(
        "the newest whole checkpoint is found, whatever its name",
        "MindEye2",
        {
            "checkpoints_schema/test_read.py": (
                "test_the_newest_whole_checkpoint_is_found_and_the_others_explained",
                "test_step_order_is_numeric_not_alphabetic",
            )
        },
    ),
    Rule(
        "a run goes on at another number of processes",
        "all: none uses DeepSpeed's universal checkpoints",
        {WORLDS: ("test_finished_weights_averages_and_moments_are_those_of_one_process",)},
    ),
]
DATA = [
    Rule(
        "validation and the choice of weights see no test picture, and none that anyone trains on",
        "MindEye1, MindEye2, NeuroPictor",
        {
            DEFECTS: ("test_validation_is_on_no_test_picture_and_on_none_that_anyone_trains_on",),
            PLAN: ("test_pictures_are_held_out_on_the_same_side_for_every_subject",),
        },
    ),
    Rule(
        "no trial of a test picture is trained on, whatever else its picture is",
        "aaalgo/fmri2img, which shuffled trials before it split them",
        {
            "datasets/nsd/test_release.py": ("test_test_pictures_are_the_shared_ones",),
            "datasets/prepared/test_mindeye2.py": ("test_a_picture_cannot_be_for_training_and_test",),
        },
    ),
    Rule(
        "responses and features are standardised by training trials alone",
        "MindEye2, Brain-Diffuser",
        {
            "datasets/test_build.py": ("test_training_bytes_do_not_depend_on_test_responses",),
            "datasets/test_build_contract.py": ("test_test_responses_change_no_byte_of_the_training_shards",),
            "datasets/test_features.py": ("test_statistics_are_over_distinct_training_pictures",),
        },
    ),
    Rule(
        "the published splits are the published pictures and trials",
        "all, which mix splits of 982 and of 1000 pictures",
        {
            "datasets/nsd/test_design.py": (
                "test_splits_have_the_published_numbers_of_pictures",
                "test_splits_have_the_published_numbers_of_trials",
            )
        },
    ),
    Rule(
        "a single shard feeds every process",
        "MindEye2 with a tar for each session",
        {
            DEFECTS: ("test_a_single_shard_feeds_every_rank_alike",),
            PLAN: ("test_lanes_own_contiguous_shares_of_nearly_equal_size",),
        },
    ),
    Rule(
        "an epoch visits every trial, each once",
        "MindEye2, which draws shards with replacement",
        {
            PLAN: (
                "test_every_trial_comes_exactly_once_in_an_own_epoch",
                "test_an_epoch_visits_every_trial_of_the_largest_subject",
            )
        },
    ),
    Rule(
        "the order of the data follows from seed and data alone, from any step on",
        "MindEye2, which seeds from process id, clock and the system",
        {
            PLAN: (
                "test_a_step_does_not_depend_on_what_was_asked_before",
                "test_the_order_is_the_one_of_the_first_release",
            ),
            "trainer/test_batches.py": ("test_reading_ahead_gives_the_same_batches_from_any_step_on",),
            "trainer/test_schedules.py": ("test_seeds_are_the_same_on_every_machine_and_for_ever",),
        },
    ),
    Rule(
        "reading keeps a small share of the data in memory",
        "MindEye2",
        {DEFECTS: ("test_reading_all_trials_keeps_a_small_share_of_them_in_memory",)},
    ),
]
RULES = [*HEADS, *LOSSES, *WORLD_SIZE, *CHECKPOINTS, *DATA]


@cache
def functions(file: str) -> dict[str, list[str]]:
    """Tests of a file by name, with their decorators and those of the whole file as they are written."""
    tree = ast.parse((TESTS / file).read_text())
    marks = [
        ast.unparse(line.value)
        for line in tree.body
        if isinstance(line, ast.Assign) and "mark" in ast.unparse(line)
    ]
    return {
        node.name: [ast.unparse(decorator) for decorator in node.decorator_list] + marks
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.holds)
def test_what_published_code_breaks_is_guarded_by_tests_that_run(rule: Rule) -> None:
    assert rule.tests and rule.broken_in
    for file, names in rule.tests.items():
        there = functions(file)
        for name in names:
            assert name in there, f"{file} has no {name}, which says that {rule.holds}"
            off = [mark for mark in there[name] if "skip" in mark or "xfail" in mark]
            assert not off, f"{file}::{name} is switched off by {off}"


def test_a_rule_is_told_once() -> None:
    assert len({rule.holds for rule in RULES}) == len(RULES)
