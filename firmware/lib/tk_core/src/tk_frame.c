#include "tk_frame.h"

#include <string.h>

#include "tk_crc32.h"

_Static_assert(TK_FRAME_MAX_PAYLOAD >= 64 && TK_FRAME_MAX_PAYLOAD <= 65521, "the protocol allows 64 .. 65521");

#define SYNC_0 0xD4U
#define SYNC_1 0x9BU

uint16_t tk_get_u16(const uint8_t *from)
{
    return (uint16_t)(from[0] | (uint16_t)(from[1] << 8));
}

uint32_t tk_get_u32(const uint8_t *from)
{
    return (uint32_t)tk_get_u16(from) | ((uint32_t)tk_get_u16(from + 2) << 16);
}

void tk_put_u16(uint8_t *to, uint16_t value)
{
    to[0] = (uint8_t)value;
    to[1] = (uint8_t)(value >> 8);
}

void tk_put_u32(uint8_t *to, uint32_t value)
{
    tk_put_u16(to, (uint16_t)value);
    tk_put_u16(to + 2, (uint16_t)(value >> 16));
}

size_t tk_frame_room(const tk_frame_decoder_t *decoder)
{
    return TK_FRAME_MAX_BYTES - decoder->count;
}

uint8_t *tk_frame_space(tk_frame_decoder_t *decoder)
{
    return decoder->bytes + decoder->count;
}

void tk_frame_received(tk_frame_decoder_t *decoder, size_t count)
{
    decoder->count += count;
}

static void drop(tk_frame_decoder_t *decoder, size_t count)
{
    decoder->count -= count;
    memmove(decoder->bytes, decoder->bytes + count, decoder->count);
    decoder->wanted = 0;
}

/* Drop at least one byte, and go on to the next first byte of a frame. */
static void resynchronise(tk_frame_decoder_t *decoder)
{
    size_t skip = 1;
    while (skip < decoder->count && decoder->bytes[skip] != SYNC_0) {
        skip++;
    }
    decoder->discarded += (uint32_t)skip;
    drop(decoder, skip);
}

bool tk_frame_next(tk_frame_decoder_t *decoder, tk_frame_t *frame)
{
    const uint8_t *bytes = decoder->bytes;
    if (decoder->frame_bytes != 0U) {
        drop(decoder, decoder->frame_bytes);
        decoder->frame_bytes = 0;
    }
    /* Each turn drops bytes or ends the loop. */
    while (decoder->count != 0U && decoder->count >= decoder->wanted) {
        if (bytes[0] != SYNC_0 || (decoder->count > 1U && bytes[1] != SYNC_1)) {
            resynchronise(decoder);
            continue;
        }
        if (decoder->count < TK_FRAME_HEADER_BYTES) {
            decoder->wanted = decoder->count < 2U ? 2U : TK_FRAME_HEADER_BYTES;
            break;
        }
        const size_t payload_bytes = tk_get_u16(bytes + 6);
        if (tk_get_u16(bytes + 8) != (uint16_t)tk_crc32(0, bytes, 8) || payload_bytes > TK_FRAME_MAX_PAYLOAD) {
            resynchronise(decoder);
            continue;
        }
        const size_t checked_bytes = TK_FRAME_HEADER_BYTES + payload_bytes;
        if (decoder->count < checked_bytes + TK_FRAME_CRC_BYTES) {
            decoder->wanted = checked_bytes + TK_FRAME_CRC_BYTES;
            break;
        }
        const uint32_t crc = tk_get_u32(bytes + checked_bytes);
        if (crc != tk_crc32(0, bytes, checked_bytes)) {
            resynchronise(decoder);
            continue;
        }
        decoder->frame_bytes = checked_bytes + TK_FRAME_CRC_BYTES;
        frame->version = bytes[2];
        frame->type = bytes[3];
        frame->sequence = tk_get_u16(bytes + 4);
        frame->payload_bytes = (uint16_t)payload_bytes;
        frame->payload = bytes + TK_FRAME_HEADER_BYTES;
        frame->crc = crc;
        return true;
    }
    return false;
}

size_t tk_frame_seal(uint8_t *frame, uint8_t type, uint16_t sequence, uint16_t payload_bytes)
{
    frame[0] = SYNC_0;
    frame[1] = SYNC_1;
    frame[2] = TK_FRAME_VERSION;
    frame[3] = type;
    tk_put_u16(frame + 4, sequence);
    tk_put_u16(frame + 6, payload_bytes);
    tk_put_u16(frame + 8, (uint16_t)tk_crc32(0, frame, 8));
    const size_t checked_bytes = TK_FRAME_HEADER_BYTES + (size_t)payload_bytes;
    tk_put_u32(frame + checked_bytes, tk_crc32(0, frame, checked_bytes));
    return checked_bytes + TK_FRAME_CRC_BYTES;
}
