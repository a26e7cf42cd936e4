"""What users do to a model between two calls, as tables with weights: how often each is drawn, relative to the others.

A change is a function of a `Subject` and a `Random`, which is the same for the stock, the optimised and the oracle's model. Those
of CHANGES work on one model, those of PATCHES on the process, as context managers.
"""

from collections.abc import Callable
from random import Random

from fuzz import attributes, hooks, parts, process, weights
from fuzz.subject import Subject

Change = Callable[[Subject, Random], None]
CHANGES: dict[str, tuple[Change, float]] = {
    f.__name__: (f, weight)
    for weight, functions in {
        1.0: (
            weights.in_place,
            weights.one_in_place,
            weights.load_state_dict,
            weights.data_assigned,
            weights.data_in_place,
            weights.replaced_parameter,
            weights.optimizer_step,
            weights.frozen,
            weights.frozen_part,
            attributes.recycled_positions,
            attributes.positions_in_place,
            attributes.other_segments,
            attributes.segments_in_place,
            attributes.attention_attribute,
            attributes.layer_attribute,
            attributes.other_padding_index,
            attributes.no_tasks,
            attributes.config_flag,
            hooks.forward_hook,
            hooks.forward_pre_hook,
            hooks.layer_pre_hook,
            hooks.replacing_hook,
            hooks.replaced_forward,
            weights.restored_and_back,
            weights.optimised_again,
        ),
        0.6: (
            weights.load_assigned,
            weights.frozen_whole,
            weights.all_trainable,
            weights.resized_vocabulary,
            weights.to_dtype,
            weights.deepcopied,
            weights.pickled,
            attributes.table_option,
            attributes.other_eps,
            attributes.other_scaling,
            attributes.other_rate,
            attributes.implementation,
            parts.dropped_layer,
            parts.user_linear,
            parts.no_bias,
            parts.other_activation,
            hooks.hook_on_and_off,
            hooks.backward_hook,
            hooks.tensor_hook,
            hooks.replacing_pre_hook,
            hooks.replaced_method,
        ),
        0.3: (
            weights.tied_layers,
            attributes.longer_positions,
            attributes.no_segment_buffer,
            attributes.checkpointing,
            parts.reordered_layers,
            parts.repeated_layer,
            parts.user_layer,
            parts.other_norm,
            parts.wrapped_part,
            parts.wrapped_layer,
            parts.no_pooler,
            parts.pooler_activation,
            parts.parametrised,
            parts.pruned,
            parts.lora,
            parts.lora_merged,
            hooks.hook_with_kwargs,
            weights.restored,
            weights.reported,
        ),
    }.items()
    for f in functions
}
PATCHES = {
    f.__name__: (f, weight)
    for f, weight in (
        (process.class_forward, 2.0),
        (process.class_method, 0.4),
        (process.activation_forward, 0.4),
        (process.registered_attention, 0.6),
        (process.eager_attention, 0.4),
        (process.mask_function, 0.4),
        (process.positions_function, 0.4),
        (process.global_hook, 0.5),
    )
}
WEIGHTS = {name: weight for table in (CHANGES, PATCHES) for name, (_, weight) in table.items()}
