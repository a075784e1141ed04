#ifndef TK_ARMV7EM_DEPTHWISE_H
#define TK_ARMV7EM_DEPTHWISE_H

#include <stdint.h>

#endif
