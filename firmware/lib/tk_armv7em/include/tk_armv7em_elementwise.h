#ifndef TK_ARMV7EM_ELEMENTWISE_H
#define TK_ARMV7EM_ELEMENTWISE_H

#include <stdint.h>

#endif
