"""The images. A further one is an entry here: load, push and the tests take it from this list."""

# Where images go and come from unless --//oci:repository says otherwise.
REPOSITORY = "docker.io/tricycle-relay"

# The tag of an image that is no release; the programs say the same when asked with -version.
VERSION = "0.0.0-dev"

# name: of the service; the image is <repository>/tricycle-<name>, its program /<name>.
# binary: the go_binary.
# port: where it listens.
# description: one sentence; registries show it.
IMAGES = [
    {
        "name": "ms1",
        "binary": "//services/ms1/cmd/ms1",
        "port": 8080,
        "description": "Opens sessions, sends messages to MS2, takes them back from MS3 and stores them in MariaDB.",
    },
    {
        "name": "ms2",
        "binary": "//services/ms2/cmd/ms2",
        "port": 8081,
        "description": "Takes messages from MS1's WebSocket, stamps them and writes them to Kafka.",
    },
    {
        "name": "ms3",
        "binary": "//services/ms3/cmd/ms3",
        "port": 8082,
        "description": "Reads messages from Kafka, stamps them and posts them to MS1.",
    },
]
