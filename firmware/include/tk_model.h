/* What the generated model offers to the firmware. tinykd build writes the implementation (tk_model.c). */
#ifndef TK_MODEL_H
#define TK_MODEL_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    const char *name;         /* for people, at most 31 characters */
    const char *engine;       /* "tinykd" or "tflm", at most 31 characters */
    const char *board;        /* name of the board file the firmware was built for, at most 31 characters */
    uint8_t sha256[32];       /* of the .tflite that the model was generated from */
    uint32_t input_bytes;     /* int8 elements of the only input */
    uint32_t output_bytes;    /* of the only output: int8 elements, or int32 ones (4 bytes each) of an ARG_MAX */
    uint32_t arena_bytes;     /* size of the activation arena */
    uint32_t num_ops;         /* ops that tk_model_run_op accepts: 0 .. num_ops - 1 */
    uint32_t state_bytes;     /* what survives from one inference to the next, in the arena; 0: each stands alone */
} tk_model_info_t;

extern const tk_model_info_t tk_model_info;

/* Where the input goes: input_bytes int8 values in NHWC order. The arena is shared with later activations, so the input
 * must be written again before every inference. */
int8_t *tk_model_input(void);

/* Where the output_bytes bytes of the output stand after the last op, until the next input is written. */
const int8_t *tk_model_output(void);

/* Run op `op` of the generated sequence; an inference is 0, 1, .. num_ops - 1 in order. Each op is a noinline function
 * tk_op_NNN of its own, so that an emulator can attribute instructions to it. */
void tk_model_run_op(uint32_t op);

/* Forget all earlier inferences: the state becomes what it is before the first one. */
void tk_model_reset_state(void);

/* The first of the arena_bytes bytes that hold the activations; placements in the memory plan count from here. */
const int8_t *tk_model_arena(void);

/* Cycles that each op took when it last ran: num_ops elements (never none: one when num_ops is 0), in .bss. The model
 * defines the array, because only it knows the length; the server alone writes and reads it. */
extern uint32_t tk_model_op_cycles[];

#endif
