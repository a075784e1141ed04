"""Build script of the local PlatformIO platform: which tools, and what `pio run` makes."""

from SCons.Script import AlwaysBuild, Default, DefaultEnvironment

env = DefaultEnvironment()
prefix = "arm-none-eabi-"

env.Replace(
    AR=f"{prefix}gcc-ar",
    AS=f"{prefix}as",
    CC=f"{prefix}gcc",
    CXX=f"{prefix}g++",
    GDB=f"{prefix}gdb",
    OBJCOPY=f"{prefix}objcopy",
    RANLIB=f"{prefix}gcc-ranlib",
    SIZETOOL=f"{prefix}size",
    PROGSUFFIX=".elf",
    SIZEPROGREGEXP=r"^(?:\.vectors|\.text|\.model|\.rodata|\.ARM\.exidx|\.data)\s+(\d+).*",
    SIZEDATAREGEXP=r"^(?:\.data|\.bss)\s+(\d+).*",
    SIZECHECKCMD="$SIZETOOL -A -d $SOURCES",
    SIZEPRINTCMD="$SIZETOOL -B -d $SOURCES",
)
if not env.get("PIOFRAMEWORK") and not env.get("LDSCRIPT_PATH"):
    env.Replace(LDSCRIPT_PATH=env.BoardConfig().get("build.ldscript"))

program = env.BuildProgram()
size = env.AddPlatformTarget(
    "size", program, env.VerboseAction("$SIZEPRINTCMD", "Calculating size $SOURCE"), "Program Size"
)
AlwaysBuild(size)
env.AddPlatformTarget("buildprog", program, None, "Build the firmware")
Default([program])
