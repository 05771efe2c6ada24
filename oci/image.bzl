"""One image: static binary -> layer -> image on an empty base -> index of both platforms -> load and push."""

load("@bazel_lib//lib:expand_template.bzl", "expand_template")
load("@bazel_lib//lib:transitions.bzl", "platform_transition_filegroup")
load("@bazel_skylib//rules:write_file.bzl", "write_file")
load("@rules_oci//oci:defs.bzl", "oci_image", "oci_image_index", "oci_load", "oci_push")
load("@tar.bzl//tar:tar.bzl", "tar")
load(":images.bzl", "VERSION")
load(":repository.bzl", "repository_file")

_AMD64 = "@rules_go//go/toolchain:linux_amd64"
_ARM64 = "@rules_go//go/toolchain:linux_arm64"

# The user of a container, unknown to the host and to other images.
_USER = "65532"

def images(entries):
    """Defines the targets of the images in oci/images.bzl.

    Args:
      entries: the list; target NAME is the index of both platforms, NAME_load and NAME_push are for `bazel run`
    """
    for entry in entries:
        for key in ["name", "binary", "port", "description"]:
            if not entry.get(key):
                fail("oci/images.bzl: %s: must have a %s" % (entry.get("name") or entry, key))
        _image(**entry)

def _image(name, binary, port, description):

    # Every path, owner, mode and time is explicit, so the layer does not depend on the machine.
    tar(
        name = name + "_layer",
        srcs = [binary],
        compress = "gzip",  # Docker 20.10 does not read zstd
        mtree = [
            "%s type=file uid=0 gid=0 mode=0755 time=0 content=$(execpath %s)" % (name, binary),
            "var type=dir uid=0 gid=0 mode=0755 time=0",
            "var/log type=dir uid=0 gid=0 mode=0755 time=0",
            # A new named volume takes owner and mode of the directory that it is mounted on.
            "var/log/tricycle type=dir uid=%s gid=%s mode=0755 time=0" % (_USER, _USER),
        ],
    )

    expand_template(
        name = name + "_labels",
        out = name + "_labels.txt",
        stamp_substitutions = {"{{STAMPED}}": "\n".join([
            "org.opencontainers.image.version={{STABLE_VERSION}}",
            "org.opencontainers.image.revision={{STABLE_REVISION}}",
        ])},
        substitutions = {"{{STAMPED}}": ""},
        template = [
            "org.opencontainers.image.title=tricycle-" + name,
            "org.opencontainers.image.description=" + description,
            "org.opencontainers.image.source=https://github.com/tricycle-relay/tricycle",
            "org.opencontainers.image.licenses=Apache-2.0",
            "{{STAMPED}}",
        ],
    )

    # Without a base the image contains only the layer.
    oci_image(
        name = name + "_image",
        architecture = select({
            "@platforms//cpu:aarch64": "arm64",
            "@platforms//cpu:x86_64": "amd64",
        }),
        entrypoint = ["/" + name],
        exposed_ports = ["%d/tcp" % port],
        labels = name + "_labels",
        os = "linux",
        tars = [name + "_layer"],
        user = _USER + ":" + _USER,
    )

    oci_image_index(
        name = name,
        images = [name + "_image"],
        platforms = [_AMD64, _ARM64],
    )

    # A Docker engine loads the image for the processor of its machine.
    platform_transition_filegroup(
        name = name + "_linux",
        srcs = [name + "_image"],
        target_platform = select({
            "@platforms//cpu:aarch64": _ARM64,
            "@platforms//cpu:x86_64": _AMD64,
        }),
    )

    repository_file(
        name = name + "_repository",
        image = "tricycle-" + name,
    )

    repository_file(
        name = name + "_tagged",
        image = "tricycle-" + name,
        suffix = ":{{VERSION}}",
    )

    expand_template(
        name = name + "_tags",
        out = name + "_tags.txt",
        stamp_substitutions = {"{{VERSION}}": "{{STABLE_VERSION}}"},
        substitutions = {"{{VERSION}}": VERSION},
        template = name + "_tagged",
    )

    oci_load(
        name = name + "_load",
        image = name + "_linux",
        repo_tags = name + "_tags",
    )

    # Only a release has a tag. Any other push prints its digest, which identifies it.
    write_file(
        name = name + "_release_tag_template",
        out = name + "_release_tag_template.txt",
        content = ["{{TAG}}"],
    )

    expand_template(
        name = name + "_release_tag",
        out = name + "_release_tag.txt",
        stamp_substitutions = {"{{TAG}}": "{{STABLE_VERSION}}"},
        substitutions = {"{{TAG}}": ""},
        template = name + "_release_tag_template",
    )

    oci_push(
        name = name + "_push",
        image = name,
        remote_tags = name + "_release_tag",
        repository_file = name + "_repository",
    )
