/* The firmware's server as a program of the host, for sanitizers.
 *
 *   core_host               serve: the UART is stdin and stdout; a reset starts the program anew
 *   core_host decode        print the frames that the decoder finds in stdin: version type sequence length crc
 *   core_host fuzz SEED N   feed the server N generated frames, good, damaged and nonsensical, and check every answer
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tk_frame.h"
#include "tk_hal.h"
#include "tk_model.h"
#include "tk_server.h"

static bool fuzzing;
static uint8_t input[8192];
static size_t input_bytes;
static size_t input_next;
static tk_frame_decoder_t answers;
static unsigned long good_answers, errors;
static uint32_t cycles;

void tk_hal_init(void)
{
}

size_t tk_hal_read(uint8_t *data, size_t max)
{
    if (max == 0) {
        fputs("the server reads into a full buffer\n", stderr);
        abort();
    }
    if (!fuzzing) {
        const ssize_t count = read(0, data, max);
        if (count <= 0) {
            exit(0);
        }
        return (size_t)count;
    }
    size_t count = (size_t)(rand() % 97);
    count = count < max ? count : max;
    count = count < input_bytes - input_next ? count : input_bytes - input_next;
    memcpy(data, input + input_next, count);
    input_next += count;
    return count;
}

void tk_hal_write(const uint8_t *data, size_t size)
{
    if (!fuzzing) {
        while (size != 0) {
            const ssize_t count = write(1, data, size);
            if (count <= 0) {
                exit(0);
            }
            data += count;
            size -= (size_t)count;
        }
        return;
    }
    if (size == 0 || size > TK_FRAME_MAX_BYTES) {
        abort();
    }
    memcpy(tk_frame_space(&answers), data, size);
    tk_frame_received(&answers, size);
    tk_frame_t frame;
    if (!tk_frame_next(&answers, &frame) || frame.version != TK_FRAME_VERSION || (frame.type & 0x80) == 0) {
        fputs("the server sent something that is no answer\n", stderr);
        abort();
    }
    if (frame.type == 0xFF) {
        errors++;
    } else {
        good_answers++;
    }
    if (tk_frame_next(&answers, &frame) || answers.discarded != 0) {
        abort();
    }
}

void tk_hal_flush(void)
{
}

uint32_t tk_hal_cycles(void)
{
    return cycles += 7;
}

static char *self;

_Noreturn void tk_hal_reset(void)
{
    if (fuzzing) {
        fputs("the fuzzer sent no RESET\n", stderr);
        abort();
    }
    char *arguments[] = {self, NULL};
    execv("/proc/self/exe", arguments);
    abort();
}

static uint32_t random_u32(void)
{
    return (uint32_t)rand() << 16 ^ (uint32_t)rand();
}

/* Append one generated frame to the input; returns false when there is no room. */
static bool generate(void)
{
    uint8_t frame[TK_FRAME_MAX_BYTES];
    uint8_t *payload = frame + TK_FRAME_HEADER_BYTES;
    static uint16_t sequence;
    uint8_t type = (uint8_t)(1 + rand() % 9);
    type = type == 9 ? 10 : type; /* FORGET, but no RESET */
    size_t length = 0;
    if (rand() % 16 == 0) {
        type = (uint8_t)rand();
        type = type == 9 ? 8 : type;
    }
    const uint32_t small = (uint32_t)(rand() % 300);
    switch (type) {
    case 1: length = 4; break;
    case 3: length = 4 + (size_t)(1 + rand() % 80); break;
    case 4: length = 8; break;
    case 5: case 6: case 7: length = 6; break;
    case 8: length = (size_t)(rand() % (TK_FRAME_MAX_PAYLOAD + 1)); break;
    default: break;
    }
    if (rand() % 16 == 0) {
        length = (size_t)(rand() % (TK_FRAME_MAX_PAYLOAD + 1));
    }
    for (size_t i = 0; i < length; i++) {
        payload[i] = (uint8_t)rand();
    }
    if (length >= 4) {
        tk_put_u32(payload, rand() % 4 == 0 ? random_u32() : rand() % 2 == 0 ? 0 : small);
    }
    if (length == 8) {
        tk_put_u32(payload + 4, rand() % 4 == 0 ? random_u32() : (uint32_t)(rand() % 5));
    }
    if (length == 6) {
        tk_put_u16(payload + 4, (uint16_t)(rand() % 4 == 0 ? rand() : rand() % 70));
    }
    if (type == 3 && rand() % 2 == 0) { /* a whole input, so that INVOKE often runs */
        length = 4 + tk_model_info.input_bytes;
        tk_put_u32(payload, 0);
    }
    sequence = (uint16_t)(sequence + (rand() % 8 != 0));
    size_t size = tk_frame_seal(frame, type, sequence, (uint16_t)length);
    if (input_bytes + size + 16 > sizeof input) {
        return false;
    }
    switch (rand() % 8) {
    case 0: frame[(size_t)rand() % size] ^= (uint8_t)(1U << (rand() % 8)); break;
    case 1: size -= (size_t)rand() % size; break;
    case 2:
        for (int i = 0; i < rand() % 16; i++) {
            input[input_bytes++] = (uint8_t)(rand() % 4 == 0 ? 0xD4 : rand() % 4 == 0 ? 0x9B : rand());
        }
        break;
    default: break;
    }
    memcpy(input + input_bytes, frame, size);
    input_bytes += size;
    return true;
}

static int fuzz(unsigned int seed, unsigned long frames)
{
    srand(seed);
    fuzzing = true;
    while (frames != 0) {
        input_bytes = input_next = 0;
        while (frames != 0 && generate()) {
            frames--;
        }
        while (input_next != input_bytes) {
            tk_server_poll();
        }
    }
    printf("%lu answers, %lu errors\n", good_answers, errors);
    return good_answers != 0 && errors != 0 ? 0 : 1;
}

static int decode(void)
{
    static tk_frame_decoder_t decoder;
    tk_frame_t frame;
    for (;;) {
        const size_t room = tk_frame_room(&decoder);
        const size_t count = fread(tk_frame_space(&decoder), 1, room < 61 ? room : 61, stdin);
        if (count == 0) {
            return 0;
        }
        tk_frame_received(&decoder, count);
        while (tk_frame_next(&decoder, &frame)) {
            printf("%u %u %u %u %08x\n", frame.version, frame.type, frame.sequence, frame.payload_bytes, (unsigned)frame.crc);
        }
    }
}

int main(int count, char **arguments)
{
    self = arguments[0];
    if (count == 4 && strcmp(arguments[1], "fuzz") == 0) {
        return fuzz((unsigned int)strtoul(arguments[2], NULL, 0), strtoul(arguments[3], NULL, 0));
    }
    if (count == 2 && strcmp(arguments[1], "decode") == 0) {
        return decode();
    }
    tk_server_start();
    for (;;) {
        tk_server_poll();
    }
}
