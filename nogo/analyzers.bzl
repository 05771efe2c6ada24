"""The analyzers of nogo: those of go vet, and staticcheck's default set."""

load("@rules_go//go:def.bzl", "TOOLS_NOGO")

# The analyzers of `go tool vet help` except cgocall: there is no cgo, and nogo does not pass the sources to it.
_VET = [
    "appends",
    "asmdecl",
    "assign",
    "atomic",
    "bools",
    "buildtag",
    "composite",
    "copylock",
    "defers",
    "directive",
    "errorsas",
    "framepointer",
    "hostport",
    "httpresponse",
    "ifaceassert",
    "loopclosure",
    "lostcancel",
    "nilfunc",
    "printf",
    "shift",
    "sigchanyzer",
    "slog",
    "stdmethods",
    "stdversion",
    "stringintconv",
    "structtag",
    "testinggoroutine",
    "tests",
    "timeformat",
    "unmarshal",
    "unreachable",
    "unsafeptr",
    "unusedresult",
    "waitgroup",
]

# golang.org/x/tools under the name of rules_go, because go.mod does not require it directly.
_PASSES = TOOLS_NOGO[0].partition("/passes/")[0] + "/passes/"

VET = [_PASSES + name + ":go_default_library" for name in _VET]

# staticcheck's default set, by number. It omits SA9003, ST1000, ST1003, ST1016 and ST1020 to ST1023, as staticcheck does by
# default. It also omits U1000, which needs a whole program while nogo checks one package, and SA5011, which panics in this
# version.
_SA = [
    1000, 1001, 1002, 1003, 1004, 1005, 1006, 1007, 1008, 1010, 1011, 1012, 1013, 1014, 1015, 1016, 1017, 1018, 1019,
    1020, 1021, 1023, 1024, 1025, 1026, 1027, 1028, 1029, 1030, 1031, 1032,
    2000, 2001, 2002, 2003,
    3000, 3001,
    4000, 4001, 4003, 4004, 4005, 4006, 4008, 4009, 4010, 4011, 4012, 4013, 4014, 4015, 4016, 4017, 4018, 4019, 4020,
    4021, 4022, 4023, 4024, 4025, 4026, 4027, 4028, 4029, 4030, 4031, 4032,
    5000, 5001, 5002, 5003, 5004, 5005, 5007, 5008, 5009, 5010, 5012,
    6000, 6001, 6002, 6003, 6005, 6006,
    9001, 9002, 9004, 9005, 9006, 9007, 9008, 9009, 9010,
]

_S = [
    1000, 1001, 1002, 1003, 1004, 1005, 1006, 1007, 1008, 1009, 1010, 1011, 1012, 1016, 1017, 1018, 1019, 1020, 1021,
    1023, 1024, 1025, 1028, 1029, 1030, 1031, 1032, 1033, 1034, 1035, 1036, 1037, 1038, 1039, 1040,
]

_ST = [1001, 1005, 1006, 1008, 1011, 1012, 1013, 1015, 1017, 1018, 1019]

STATICCHECK = (
    ["@co_honnef_go_tools//staticcheck/sa%d" % n for n in _SA] +
    ["@co_honnef_go_tools//simple/s%d" % n for n in _S] +
    ["@co_honnef_go_tools//stylecheck/st%d" % n for n in _ST]
)
