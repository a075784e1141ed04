"""What to do instead: the nearest way out of each op and type of a `.tflite` that tinykd does not take."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_CONTROL_FLOW = (
    "Unroll it, or export the step without the loop or branch, and drive it from the application: "
    "tinykd takes one subgraph without control flow."
)
_VARIABLES = (
    "Keep the state outside the model: pass it in as an input and out as an output, or use an SVDF, whose state is "
    "supported."
)
_SEQUENCE = (
    "Replace the recurrent layer by causal or dilated convolutions or by SVDFs, or export one step with its state as "
    "input and output."
)
_HOST = "Cut the model before it and do it in the application: it is little work on few values."
_FOLD_SHAPES = "Convert the model with fixed shapes (batch 1): the converter then computes shapes once and for all."
_LOOKUP = "Replace it by an activation that has an int8 form: RELU, RELU6, HARD_SWISH, LOGISTIC, TANH or LEAKY_RELU."
_REDUCE = "Replace it by MEAN, or by AVERAGE_POOL_2D or MAX_POOL_2D over the whole map."
_DILATED = (
    "Keras writes a dilated convolution this way: convert it with a newer converter, which folds it into the "
    "convolution's dilation."
)

ADVICE_OF_BUILTIN: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("IF", "WHILE", "CALL", "CALL_ONCE", "STABLEHLO_WHILE", "STABLEHLO_CASE"), _CONTROL_FLOW),
        **dict.fromkeys(
            (
                "VAR_HANDLE",
                "READ_VARIABLE",
                "ASSIGN_VARIABLE",
                "HASHTABLE",
                "HASHTABLE_FIND",
                "HASHTABLE_IMPORT",
                "HASHTABLE_SIZE",
            ),
            _VARIABLES,
        ),
        **dict.fromkeys(
            (
                "LSTM",
                "RNN",
                "UNIDIRECTIONAL_SEQUENCE_LSTM",
                "UNIDIRECTIONAL_SEQUENCE_RNN",
                "BIDIRECTIONAL_SEQUENCE_LSTM",
                "BIDIRECTIONAL_SEQUENCE_RNN",
            ),
            _SEQUENCE,
        ),
        **dict.fromkeys(
            ("ARG_MIN", "TOPK_V2", "LOG_SOFTMAX", "NON_MAX_SUPPRESSION_V4", "NON_MAX_SUPPRESSION_V5", "ONE_HOT"), _HOST
        ),
        **dict.fromkeys(
            ("SHAPE", "PACK", "FILL", "RANGE", "RANK", "REDUCE_PROD", "BROADCAST_ARGS", "GATHER_ND", "CAST", "WHERE"),
            _FOLD_SHAPES,
        ),
        **dict.fromkeys(
            ("ELU", "EXP", "GELU", "LOG", "SQRT", "RSQRT", "SIN", "COS", "POW", "RELU_0_TO_1"),
            _LOOKUP,
        ),
        **dict.fromkeys(("SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_ANY", "REDUCE_ALL"), _REDUCE),
        **dict.fromkeys(("SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND"), _DILATED),
        "ABS": "Write it as MAXIMUM of the tensor and its negative.",
        "NEG": "Write it as MUL by -1, or turn the sign of the weights before it.",
        "SQUARE": "Write it as MUL of the tensor by itself.",
        "RELU_N1_TO_1": "Use RELU or RELU6, or fuse it into the op before: tinykd takes it as a fused activation.",
        "RESIZE_BILINEAR": "Use RESIZE_NEAREST_NEIGHBOR, or a TRANSPOSE_CONV with bilinear weights.",
        "MIRROR_PAD": "Pad with zeros (PAD), or mirror in the application.",
        "DIV": "Multiply by the reciprocal (MUL) if the divisor is a constant.",
        "SQUARED_DIFFERENCE": "Write it as SUB and MUL.",
        "L2_NORMALIZATION": _HOST,
        "L2_POOL_2D": "Use AVERAGE_POOL_2D or MAX_POOL_2D.",
        "BATCH_MATMUL": "Write it as FULLY_CONNECTED if one side is constant; of two activations it is not supported.",
        "EMBEDDING_LOOKUP": "Look the row up in the application and pass it in.",
        "GATHER": "Use STRIDED_SLICE or SPLIT for constant indices; look rows up in the application otherwise.",
        "UNPACK": "Use SPLIT, and RESHAPE each part.",
        "TILE": "Use CONCATENATION, let ADD and MUL broadcast, or tf.image.resize (nearest) for an UpSampling2D.",
        "BROADCAST_TO": "Let ADD, SUB, MUL, MAXIMUM and MINIMUM broadcast: they need no explicit copy.",
        "DEPTH_TO_SPACE": "Use RESHAPE and TRANSPOSE, or a TRANSPOSE_CONV.",
        "SPACE_TO_DEPTH": "Use RESHAPE and TRANSPOSE, or a convolution with that stride.",
        "ADD_N": "Write it as a chain of ADDs.",
        "CONV_3D": "Split it into 2D convolutions.",
        "DENSIFY": "Convert the model without sparse weights (no tf.lite.Optimize.EXPERIMENTAL_SPARSITY).",
        "DELEGATE": "Use the model as it was before it was compiled for a delegate.",
    }
)
_ADVICE_OF_CUSTOM: Mapping[str, str] = MappingProxyType(
    {
        "TFLite_Detection_PostProcess": "Cut the model at its boxes and scores, and decode them in the application.",
        "ethos-u": "This file was compiled by vela: use the .tflite from which it was made.",
        "edgetpu-custom-op": "This file was compiled for an Edge TPU: use the .tflite from which it was made.",
        "SignalRfft": "Compute the features in the application, and start the model at them.",
    }
)
_FULL_INT8 = (
    "Quantise it fully to int8: converter.optimizations = [tf.lite.Optimize.DEFAULT], a representative_dataset, "
    "target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8] and "
    "converter.inference_input_type = converter.inference_output_type = tf.int8; or train and export it with tinykd."
)
_ADVICE_OF_TYPE: Mapping[str, str] = MappingProxyType(
    {
        "uint8": "It comes from a quantiser older than int8 (TensorFlow 1): convert it again. " + _FULL_INT8,
        "int16": "Use int8 activations: quantise without the 16x8 mode. " + _FULL_INT8,
        "int4": "Use int8 weights: there is no int4 kernel here.",
        "float16": "Half precision is for GPUs. " + _FULL_INT8,
        "bfloat16": "Half precision is for GPUs. " + _FULL_INT8,
        "int64": "Use int32 (ARG_MAX has an output_type), or leave the op to the application.",
        "bool": "Leave comparisons and masks to the application.",
        "string": "Leave text to the application.",
    }
)


def builtin_advice(builtin: str, custom: str = "") -> str:
    """Return the way out of an op that is not supported: by its builtin's name and, for CUSTOM, its own."""
    if builtin == "CUSTOM":
        if custom.startswith("Flex"):
            return "It needs TensorFlow's own kernels (SELECT_TF_OPS): convert with TFLITE_BUILTINS_INT8 only."
        return _ADVICE_OF_CUSTOM.get(
            custom, "Custom ops need code that only their author has: cut the model before it."
        )
    if builtin.startswith("STABLEHLO_"):
        return "Convert it to TFLite's own ops: StableHLO ops have no int8 kernels."
    return ADVICE_OF_BUILTIN.get(
        builtin, "Replace it in the model, or cut the model there and do it in the application."
    )


def type_advice(dtype: str) -> str:
    """Return the way out of a tensor type that is not supported."""
    return _ADVICE_OF_TYPE.get(dtype, _FULL_INT8)


def activation_advice() -> str:
    """Return the way out of a fused activation that is not supported."""
    return (
        "Fused activations are none, RELU, RELU6 and RELU_N1_TO_1; write others as an op of their own (TANH, LOGISTIC)."
    )


def dynamic_advice() -> str:
    """Return the way out of shapes that are not fixed, and of batches."""
    return "Convert it with a fixed input shape and batch 1, for example tf.function with tf.TensorSpec([1, H, W, C])."
