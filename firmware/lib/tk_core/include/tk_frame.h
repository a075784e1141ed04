/* Frames of the serial protocol: docs/spec-protocol.md, sections Frame and Receiving. No I/O here. */
#ifndef TK_FRAME_H
#define TK_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Most bytes of payload in a frame: 64 .. 65521. Two buffers of this size are the server's only large memory. */
#ifndef TK_FRAME_MAX_PAYLOAD
#define TK_FRAME_MAX_PAYLOAD 1024
#endif

#define TK_FRAME_VERSION 1U
#define TK_FRAME_HEADER_BYTES 10U
#define TK_FRAME_CRC_BYTES 4U
#define TK_FRAME_OVERHEAD_BYTES (TK_FRAME_HEADER_BYTES + TK_FRAME_CRC_BYTES)
#define TK_FRAME_MAX_BYTES (TK_FRAME_OVERHEAD_BYTES + TK_FRAME_MAX_PAYLOAD)

/* A whole, checked frame. `payload` points into the decoder and stands until its next call. */
typedef struct {
    uint8_t version;
    uint8_t type;
    uint16_t sequence;
    uint16_t payload_bytes;
    const uint8_t *payload;
    uint32_t crc;
} tk_frame_t;

/* A receiver. All zero is the state before the first byte. Only tk_frame.c touches the fields. */
typedef struct {
    size_t count;        /* bytes in `bytes`, which begin where a frame may begin */
    size_t frame_bytes;  /* of the frame handed out last, dropped by the next call; 0: none */
    size_t wanted;       /* nothing can be decided before so many bytes are here */
    uint32_t discarded;  /* bytes dropped since the start because they were part of no good frame, modulo 2^32 */
    uint8_t bytes[TK_FRAME_MAX_BYTES];
} tk_frame_decoder_t;

/* How many more bytes the decoder can take: at least 1 after tk_frame_next returned false. */
size_t tk_frame_room(const tk_frame_decoder_t *decoder);

/* Where to put the next tk_frame_room bytes; tell how many came with tk_frame_received. */
uint8_t *tk_frame_space(tk_frame_decoder_t *decoder);
void tk_frame_received(tk_frame_decoder_t *decoder, size_t count);

/* Take the next good frame out of the bytes received so far. Returns false when there is none yet: then receive more.
 * Never reads outside of the bytes received; the time is bounded by a small multiple of TK_FRAME_MAX_BYTES for each byte. */
bool tk_frame_next(tk_frame_decoder_t *decoder, tk_frame_t *frame);

/* Make a frame in place: `frame` has room for TK_FRAME_MAX_BYTES and its payload stands at TK_FRAME_HEADER_BYTES already.
 * Returns the number of bytes to send. `payload_bytes` is at most TK_FRAME_MAX_PAYLOAD. */
size_t tk_frame_seal(uint8_t *frame, uint8_t type, uint16_t sequence, uint16_t payload_bytes);

/* Little-endian integers at any alignment. */
uint16_t tk_get_u16(const uint8_t *from);
uint32_t tk_get_u32(const uint8_t *from);
void tk_put_u16(uint8_t *to, uint16_t value);
void tk_put_u32(uint8_t *to, uint32_t value);

#endif
