#include "tk_server.h"

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "tk_board.h"
#include "tk_frame.h"
#include "tk_hal.h"
#include "tk_model.h"

#ifndef TK_CLOCK_HZ
#error "tk_board.h must define TK_CLOCK_HZ"
#endif

#define FIRMWARE_VERSION "0.1.0"
#define MAX_STR_BYTES 31U
#define NO_OP UINT32_MAX /* INVOKE must wait for a whole input */

enum {
    TYPE_HELLO = 0x01,
    TYPE_INFO = 0x02,
    TYPE_LOAD = 0x03,
    TYPE_INVOKE = 0x04,
    TYPE_RESULT = 0x05,
    TYPE_PROFILE = 0x06,
    TYPE_ACTIVATION = 0x07,
    TYPE_ECHO = 0x08,
    TYPE_RESET = 0x09,
    TYPE_FORGET = 0x0A,
    TYPE_ANSWER = 0x80,
    TYPE_READY = 0xC0,
    TYPE_ERROR = 0xFF,
};

typedef enum {
    ERROR_NONE = 0,
    ERROR_NO_SESSION = 1,
    ERROR_UNKNOWN_TYPE = 2,
    ERROR_BAD_LENGTH = 3,
    ERROR_OUT_OF_RANGE = 4,
    ERROR_OUT_OF_ORDER = 5,
    ERROR_NO_RESULT = 6,
    ERROR_BAD_SEQUENCE = 7,
    ERROR_BAD_VERSION = 8,
} error_code_t;

/* What a request came to: an error with its detail, or ERROR_NONE with `payload_bytes` written to the answer. */
typedef struct {
    error_code_t code;
    uint32_t value; /* detail of the error, or bytes of payload */
} outcome_t;

static tk_frame_decoder_t decoder;

/* The last answer stays here, to be sent again when its request comes again. */
static uint8_t answer[TK_FRAME_MAX_BYTES];
static size_t answer_bytes; /* 0: nothing answered since reset */
static uint16_t answered_sequence;
static uint32_t answered_crc;

static bool in_session;
static bool has_result;
static uint32_t loaded_bytes;
static uint32_t next_op = NO_OP;
static uint32_t inferences;

static uint8_t *const payload = answer + TK_FRAME_HEADER_BYTES;

static outcome_t fail(error_code_t code, uint32_t detail)
{
    return (outcome_t){code, detail};
}

static outcome_t done(size_t payload_bytes)
{
    return (outcome_t){ERROR_NONE, (uint32_t)payload_bytes};
}

static uint32_t str_length(const char *text)
{
    uint32_t length = 0;
    while (length < MAX_STR_BYTES && text[length] != '\0') {
        length++;
    }
    return length;
}

/* Append a str to the payload; returns the offset behind it. */
static size_t put_str(size_t offset, const char *text)
{
    const uint32_t length = str_length(text);
    payload[offset] = (uint8_t)length;
    memcpy(payload + offset + 1U, text, length);
    return offset + 1U + length;
}

static size_t put_identity(uint32_t nonce)
{
    _Static_assert(TK_FRAME_MAX_PAYLOAD >= 40 + 2 * (1 + MAX_STR_BYTES), "the identity must fit a frame");
    tk_put_u32(payload, nonce);
    payload[4] = TK_FRAME_VERSION;
    payload[5] = 0;
    tk_put_u16(payload + 6, TK_FRAME_MAX_PAYLOAD);
    memcpy(payload + 8, tk_model_info.sha256, 32);
    return put_str(put_str(40, tk_model_info.board), tk_model_info.engine);
}

/* Back to before the first inference, as far as the next one can tell. */
static void forget(void)
{
    has_result = false;
    loaded_bytes = 0;
    next_op = NO_OP;
    tk_model_reset_state();
}

static outcome_t hello(const tk_frame_t *request)
{
    if (request->payload_bytes != 4U) {
        return fail(ERROR_BAD_LENGTH, request->payload_bytes);
    }
    in_session = true;
    forget();
    return done(put_identity(tk_get_u32(request->payload)));
}

static outcome_t info(const tk_frame_t *request)
{
    if (request->payload_bytes != 0U) {
        return fail(ERROR_BAD_LENGTH, request->payload_bytes);
    }
    tk_put_u32(payload, tk_model_info.input_bytes);
    tk_put_u32(payload + 4, tk_model_info.output_bytes);
    tk_put_u32(payload + 8, tk_model_info.arena_bytes);
    tk_put_u32(payload + 12, tk_model_info.num_ops);
    tk_put_u32(payload + 16, (uint32_t)TK_CLOCK_HZ);
    tk_put_u32(payload + 20, inferences);
    tk_put_u32(payload + 24, decoder.discarded);
    const size_t end = put_str(put_str(28, tk_model_info.name), FIRMWARE_VERSION);
    tk_put_u32(payload + end, tk_model_info.state_bytes);
    return done(end + 4U);
}

static outcome_t load(const tk_frame_t *request)
{
    if (request->payload_bytes < 5U) {
        return fail(ERROR_BAD_LENGTH, request->payload_bytes);
    }
    const uint32_t offset = tk_get_u32(request->payload);
    const uint32_t count = request->payload_bytes - 4U;
    if (offset != 0U && offset != loaded_bytes) {
        return fail(ERROR_OUT_OF_ORDER, loaded_bytes);
    }
    /* offset <= input_bytes here, so the difference cannot wrap. */
    if (count > tk_model_info.input_bytes - offset) {
        return fail(ERROR_OUT_OF_RANGE, tk_model_info.input_bytes);
    }
    memcpy(tk_model_input() + offset, request->payload + 4, count);
    loaded_bytes = offset + count;
    next_op = loaded_bytes == tk_model_info.input_bytes ? 0U : NO_OP;
    has_result = false;
    tk_put_u32(payload, loaded_bytes);
    return done(4);
}

__attribute__((noinline)) uint64_t tk_server_invoke(uint32_t first, uint32_t count)
{
    uint64_t total = 0;
    uint32_t mark = tk_hal_cycles();
    for (uint32_t op = first; op < first + count; op++) {
        const uint32_t before = tk_hal_cycles();
        tk_model_run_op(op);
        const uint32_t after = tk_hal_cycles();
        tk_model_op_cycles[op] = after - before;
        total += after - mark; /* the counter may wrap once an op, not once an inference */
        mark = after;
    }
    return total;
}

static outcome_t invoke(const tk_frame_t *request)
{
    if (request->payload_bytes != 8U) {
        return fail(ERROR_BAD_LENGTH, request->payload_bytes);
    }
    const uint32_t first = tk_get_u32(request->payload);
    uint32_t count = tk_get_u32(request->payload + 4);
    if (next_op == NO_OP || first != next_op) {
        return fail(ERROR_OUT_OF_ORDER, next_op);
    }
    const uint32_t left = tk_model_info.num_ops - first;
    if (count > left) {
        return fail(ERROR_OUT_OF_RANGE, tk_model_info.num_ops);
    }
    if (count == 0U) {
        count = left;
    }
    loaded_bytes = 0; /* from here on activations may overwrite the input */
    const uint64_t cycles = tk_server_invoke(first, count);
    if (count == left) {
        next_op = NO_OP;
        has_result = true;
        inferences++;
    } else {
        next_op = first + count;
    }
    tk_put_u32(payload, (uint32_t)cycles);
    tk_put_u32(payload + 4, (uint32_t)(cycles >> 32));
    tk_put_u32(payload + 8, inferences);
    tk_put_u32(payload + 12, first + count);
    return done(16);
}

/* The arguments of RESULT, PROFILE and ACTIVATION: `count` items of `item_bytes` each from `first`, of which there are `end`.
 * Answers the first of them at the start of the payload. */
static outcome_t part(const tk_frame_t *request, uint32_t end, uint32_t item_bytes, uint32_t *first, uint32_t *count)
{
    if (request->payload_bytes != 6U) {
        return fail(ERROR_BAD_LENGTH, request->payload_bytes);
    }
    *first = tk_get_u32(request->payload);
    *count = tk_get_u16(request->payload + 4);
    if (*first > end || *count > end - *first || *count == 0U) {
        return fail(ERROR_OUT_OF_RANGE, end);
    }
    if (*count > (TK_FRAME_MAX_PAYLOAD - 4U) / item_bytes) {
        return fail(ERROR_OUT_OF_RANGE, (TK_FRAME_MAX_PAYLOAD - 4U) / item_bytes);
    }
    tk_put_u32(payload, *first);
    return done(4U + *count * item_bytes);
}

static outcome_t result(const tk_frame_t *request)
{
    uint32_t first;
    uint32_t count;
    if (!has_result) {
        return fail(ERROR_NO_RESULT, 0);
    }
    const outcome_t outcome = part(request, tk_model_info.output_bytes, 1, &first, &count);
    if (outcome.code == ERROR_NONE) {
        memcpy(payload + 4, tk_model_output() + first, count);
    }
    return outcome;
}

static outcome_t activation(const tk_frame_t *request)
{
    uint32_t first;
    uint32_t count;
    const outcome_t outcome = part(request, tk_model_info.arena_bytes, 1, &first, &count);
    if (outcome.code == ERROR_NONE) {
        memcpy(payload + 4, tk_model_arena() + first, count);
    }
    return outcome;
}

static outcome_t profile(const tk_frame_t *request)
{
    uint32_t first;
    uint32_t count;
    const outcome_t outcome = part(request, tk_model_info.num_ops, 4, &first, &count);
    if (outcome.code == ERROR_NONE) {
        for (uint32_t i = 0; i < count; i++) {
            tk_put_u32(payload + 4U + 4U * i, tk_model_op_cycles[first + i]);
        }
    }
    return outcome;
}

static outcome_t echo(const tk_frame_t *request)
{
    memcpy(payload, request->payload, request->payload_bytes);
    return done(request->payload_bytes);
}

static outcome_t run(const tk_frame_t *request)
{
    if (request->version != TK_FRAME_VERSION) {
        return fail(ERROR_BAD_VERSION, TK_FRAME_VERSION);
    }
    if (request->type == TYPE_HELLO) {
        return hello(request);
    }
    if (!in_session) {
        return fail(ERROR_NO_SESSION, 0);
    }
    if (answer_bytes != 0U && request->sequence == answered_sequence) {
        return fail(ERROR_BAD_SEQUENCE, answered_sequence);
    }
    switch (request->type) {
    case TYPE_INFO:
        return info(request);
    case TYPE_LOAD:
        return load(request);
    case TYPE_INVOKE:
        return invoke(request);
    case TYPE_RESULT:
        return result(request);
    case TYPE_PROFILE:
        return profile(request);
    case TYPE_ACTIVATION:
        return activation(request);
    case TYPE_ECHO:
        return echo(request);
    case TYPE_RESET:
        return request->payload_bytes == 0U ? done(0) : fail(ERROR_BAD_LENGTH, request->payload_bytes);
    case TYPE_FORGET:
        if (request->payload_bytes != 0U) {
            return fail(ERROR_BAD_LENGTH, request->payload_bytes);
        }
        forget();
        return done(0);
    default:
        return fail(ERROR_UNKNOWN_TYPE, request->type);
    }
}

static void serve(const tk_frame_t *request)
{
    if (answer_bytes != 0U && request->sequence == answered_sequence && request->crc == answered_crc) {
        tk_hal_write(answer, answer_bytes);
        return;
    }
    const outcome_t outcome = run(request);
    if (outcome.code == ERROR_NONE) {
        const uint8_t type = (uint8_t)(request->type | TYPE_ANSWER);
        answer_bytes = tk_frame_seal(answer, type, request->sequence, (uint16_t)outcome.value);
    } else {
        tk_put_u16(payload, (uint16_t)outcome.code);
        payload[2] = request->type;
        payload[3] = 0;
        tk_put_u32(payload + 4, outcome.value);
        answer_bytes = tk_frame_seal(answer, TYPE_ERROR, request->sequence, 8);
    }
    answered_sequence = request->sequence;
    answered_crc = request->crc;
    tk_hal_write(answer, answer_bytes);
    if (request->type == TYPE_RESET && outcome.code == ERROR_NONE) {
        tk_hal_flush();
        tk_hal_reset();
    }
}

static void say(const char *text, uint32_t length)
{
    tk_hal_write((const uint8_t *)text, length);
}

void tk_server_start(void)
{
    static const char digits[] = "0123456789abcdef";
    char hash[16];
    for (size_t i = 0; i < sizeof hash; i++) {
        hash[i] = digits[(tk_model_info.sha256[i / 2U] >> (i % 2U == 0U ? 4 : 0)) & 15U];
    }
    say("tinykd READY protocol=1 board=", 30);
    say(tk_model_info.board, str_length(tk_model_info.board));
    say(" engine=", 8);
    say(tk_model_info.engine, str_length(tk_model_info.engine));
    say(" model=", 7);
    say(hash, sizeof hash);
    say("\r\n", 2);
    tk_hal_write(answer, tk_frame_seal(answer, TYPE_READY, 0, (uint16_t)put_identity(0)));
}

void tk_server_poll(void)
{
    tk_frame_t request;
    tk_frame_received(&decoder, tk_hal_read(tk_frame_space(&decoder), tk_frame_room(&decoder)));
    while (tk_frame_next(&decoder, &request)) {
        serve(&request);
    }
}
