"""The list of images. Load, push and the tests read it; a new image is one entry."""

# The default of --//oci:repository.
REPOSITORY = "docker.io/tricycle-relay"

# The tag of an image without a release; the programs print it for -version.
VERSION = "0.0.0-dev"

# name: the service. The image is <repository>/tricycle-<name>, its program /<name>.
# binary: the go_binary.
# port: the port that it listens on.
# description: one sentence; registries show it.
IMAGES = [
    {
        "name": "ms1",
        "binary": "//services/ms1/cmd/ms1",
        "port": 8080,
        "description": "Opens sessions, sends messages to MS2, receives them from MS3 and stores them in MariaDB.",
    },
    {
        "name": "ms2",
        "binary": "//services/ms2/cmd/ms2",
        "port": 8081,
        "description": "Receives messages from MS1 over a WebSocket, stamps them and writes them to Kafka.",
    },
    {
        "name": "ms3",
        "binary": "//services/ms3/cmd/ms3",
        "port": 8082,
        "description": "Reads messages from Kafka, stamps them and posts them to MS1.",
    },
]
