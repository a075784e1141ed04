/* CRC-32 of IEEE 802.3 (reflected, polynomial 0xEDB88320), as zlib computes it. */
#ifndef TK_CRC32_H
#define TK_CRC32_H

#include <stddef.h>
#include <stdint.h>

/* The CRC of `size` bytes that follow bytes whose CRC is `crc`; begin with crc = 0. */
uint32_t tk_crc32(uint32_t crc, const uint8_t *data, size_t size);

#endif
