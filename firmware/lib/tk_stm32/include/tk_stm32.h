/* What the HALs of the STM32 families share: the clock tree of F4 and F7 (RCC), and the pins of the UART (GPIO).
 *
 * Source: RM0385 and RM0402, the register maps of RCC and GPIO, which are the same in both; bits by their names there.
 *
 * What they expect from the board file: [defines] in boards/<board>.toml, which reach C through tk_board.h.
 *
 *   TK_HSE_HZ                 frequency on the HSE input
 *   TK_HSE_BYPASS             1: an external clock (on Nucleo boards the ST-LINK's 8 MHz); 0: a crystal
 *   TK_PLL_M, _N, _P, _Q      main PLL: VCO = HSE / M * N; core clock = VCO / P; P is 2, 4, 6 or 8; Q 2 .. 15 is unused
 *   TK_APB1_DIV, TK_APB2_DIV  bus dividers: 1, 2, 4, 8 or 16; the core runs undivided from AHB
 *   TK_PWR_VOS                voltage scale, the value of the VOS bits: 1 .. 3
 *   TK_FLASH_WAIT_STATES      for TK_CLOCK_HZ at 2.7 .. 3.6 V
 *   TK_UART_BASE              address of the USART that the host talks to
 *   TK_UART_ENABLE_ADDRESS    address of the RCC register with its clock enable bit, ...
 *   TK_UART_ENABLE_BIT        ... and the bit
 *   TK_UART_APB               1 or 2: the bus that clocks it
 *   TK_UART_GPIO_BASE         address of the GPIO port with both pins, ...
 *   TK_UART_GPIO_ENABLE_BIT   ... and its bit in RCC_AHB1ENR
 *   TK_UART_TX_PIN, _RX_PIN   0 .. 15
 *   TK_UART_TX_AF, _RX_AF     alternate function number, 0 .. 15
 *
 * TK_CLOCK_HZ and TK_BAUD come from the board's clock_hz and baud. The limits below are checked when this is compiled; a
 * family's own defines are in the header of its HAL. */
#ifndef TK_STM32_H
#define TK_STM32_H

#include <stdint.h>

#include "tk_armv7m.h"
#include "tk_board.h"

#if !defined(TK_HSE_HZ) || !defined(TK_HSE_BYPASS) || !defined(TK_PLL_M) || !defined(TK_PLL_N) || !defined(TK_PLL_P) || \
    !defined(TK_PLL_Q) || !defined(TK_APB1_DIV) || !defined(TK_APB2_DIV) || !defined(TK_PWR_VOS) || \
    !defined(TK_FLASH_WAIT_STATES) || !defined(TK_UART_BASE) || !defined(TK_UART_ENABLE_ADDRESS) || \
    !defined(TK_UART_ENABLE_BIT) || !defined(TK_UART_APB) || !defined(TK_UART_GPIO_BASE) || \
    !defined(TK_UART_GPIO_ENABLE_BIT) || !defined(TK_UART_TX_PIN) || !defined(TK_UART_TX_AF) || \
    !defined(TK_UART_RX_PIN) || !defined(TK_UART_RX_AF)
#error "a define is missing: compare [defines] of the board file with the list in tk_stm32.h"
#endif

#define TK_VCO_HZ (TK_HSE_HZ / TK_PLL_M * TK_PLL_N)
#define TK_UART_CLOCK_HZ (TK_CLOCK_HZ / (TK_UART_APB == 1 ? TK_APB1_DIV : TK_APB2_DIV))

_Static_assert(TK_VCO_HZ / TK_PLL_P == TK_CLOCK_HZ, "HSE / M * N / P is not clock_hz");
_Static_assert(TK_HSE_HZ / TK_PLL_M >= 1000000 && TK_HSE_HZ / TK_PLL_M <= 2000000, "the PLL input must be 1 to 2 MHz");
_Static_assert(TK_VCO_HZ >= 100000000 && TK_VCO_HZ <= 432000000, "the VCO must run at 100 to 432 MHz");
_Static_assert(TK_PLL_P == 2 || TK_PLL_P == 4 || TK_PLL_P == 6 || TK_PLL_P == 8, "PLL_P is 2, 4, 6 or 8");
_Static_assert(TK_UART_CLOCK_HZ / TK_BAUD >= 16, "the UART's clock is too slow for the baud rate");

#define RCC_CR TK_REG(0x40023800U)
#define RCC_CR_HSION (1U << 0)
#define RCC_CR_HSIRDY (1U << 1)
#define RCC_CR_HSEON (1U << 16)
#define RCC_CR_HSERDY (1U << 17)
#define RCC_CR_HSEBYP (1U << 18)
#define RCC_CR_PLLON (1U << 24)
#define RCC_CR_PLLRDY (1U << 25)
#define RCC_PLLCFGR TK_REG(0x40023804U)
#define RCC_PLLCFGR_SRC_HSE (1U << 22)
#define RCC_CFGR TK_REG(0x40023808U)
#define RCC_CFGR_SW_MASK 3U
#define RCC_CFGR_SW_HSI 0U
#define RCC_CFGR_SW_PLL 2U
#define RCC_AHB1ENR TK_REG(0x40023830U)
#define RCC_APB1ENR TK_REG(0x40023840U)
#define RCC_APB1ENR_PWREN (1U << 28)

#define GPIO_MODER TK_REG(TK_UART_GPIO_BASE + 0x00U)
#define GPIO_PUPDR TK_REG(TK_UART_GPIO_BASE + 0x0CU)
#define GPIO_AFR(pin) TK_REG(TK_UART_GPIO_BASE + 0x20U + 4U * ((pin) / 8U))
#define GPIO_MODE_ALTERNATE 2U
#define GPIO_PULL_UP 1U

/* Block until the bits `mask` of a register have `value`: for ever when the clock that is waited for is absent. Then there is
 * no UART to complain through, and the host reports that READY did not come. */
static inline void tk_stm32_wait_for(volatile const uint32_t *address, uint32_t mask, uint32_t value)
{
    while ((*address & mask) != value) {
    }
}

/* Fall back to the internal oscillator and stop the PLL, so that start-up also works after a bootloader has set the clocks;
 * then open the power controller's registers. */
static inline void tk_stm32_stop_pll(void)
{
    RCC_CR |= RCC_CR_HSION;
    tk_stm32_wait_for(&RCC_CR, RCC_CR_HSIRDY, RCC_CR_HSIRDY);
    RCC_CFGR = RCC_CFGR_SW_HSI;
    tk_stm32_wait_for(&RCC_CFGR, RCC_CFGR_SW_MASK << 2, RCC_CFGR_SW_HSI << 2);
    RCC_CR &= ~RCC_CR_PLLON;
    tk_stm32_wait_for(&RCC_CR, RCC_CR_PLLRDY, 0);
    RCC_APB1ENR |= RCC_APB1ENR_PWREN;
    (void)RCC_APB1ENR; /* two bus cycles until the peripheral answers */
}

/* Start the external oscillator and the PLL from it; `more` are bits of PLLCFGR that only one family has. */
static inline void tk_stm32_start_pll(uint32_t more)
{
    RCC_CR &= ~(RCC_CR_HSEON | RCC_CR_HSEBYP);
    if (TK_HSE_BYPASS != 0) {
        RCC_CR |= RCC_CR_HSEBYP;
    }
    RCC_CR |= RCC_CR_HSEON;
    tk_stm32_wait_for(&RCC_CR, RCC_CR_HSERDY, RCC_CR_HSERDY);
    RCC_PLLCFGR = (uint32_t)TK_PLL_M | ((uint32_t)TK_PLL_N << 6) | ((TK_PLL_P / 2U - 1U) << 16) | RCC_PLLCFGR_SRC_HSE |
                  ((uint32_t)TK_PLL_Q << 24) | more;
    RCC_CR |= RCC_CR_PLLON;
    tk_stm32_wait_for(&RCC_CR, RCC_CR_PLLRDY, RCC_CR_PLLRDY);
}

/* RCC's code for an APB divider of 1, 2, 4, 8 or 16. */
static inline uint32_t tk_stm32_apb_code(uint32_t divider)
{
    return divider == 1U ? 0U : divider == 2U ? 4U : divider == 4U ? 5U : divider == 8U ? 6U : 7U;
}

/* Run the core from the PLL. The flash must have been made slow enough before. */
static inline void tk_stm32_use_pll(void)
{
    RCC_CFGR = (tk_stm32_apb_code(TK_APB1_DIV) << 10) | (tk_stm32_apb_code(TK_APB2_DIV) << 13);
    RCC_CFGR |= RCC_CFGR_SW_PLL;
    tk_stm32_wait_for(&RCC_CFGR, RCC_CFGR_SW_MASK << 2, RCC_CFGR_SW_PLL << 2);
}

static inline void tk_stm32_open_pin(uint32_t pin, uint32_t function)
{
    GPIO_AFR(pin) = (GPIO_AFR(pin) & ~(15U << (4U * (pin % 8U)))) | (function << (4U * (pin % 8U)));
    GPIO_PUPDR = (GPIO_PUPDR & ~(3U << (2U * pin))) | (GPIO_PULL_UP << (2U * pin));
    GPIO_MODER = (GPIO_MODER & ~(3U << (2U * pin))) | (GPIO_MODE_ALTERNATE << (2U * pin));
}

/* Give the UART and its pins their clocks, and the pins to the UART. */
static inline void tk_stm32_open_uart_pins(void)
{
    RCC_AHB1ENR |= 1U << TK_UART_GPIO_ENABLE_BIT;
    TK_REG(TK_UART_ENABLE_ADDRESS) |= 1U << TK_UART_ENABLE_BIT;
    (void)TK_REG(TK_UART_ENABLE_ADDRESS);
    tk_stm32_open_pin(TK_UART_TX_PIN, TK_UART_TX_AF);
    tk_stm32_open_pin(TK_UART_RX_PIN, TK_UART_RX_AF);
}

#endif
