# A mock of nixpkgs with the names that flake.nix uses. With it, every output evaluates and the shells and apps run on a
# machine that cannot download nixpkgs. A package is a directory of short scripts that start the machine's own programs;
# .ci/nix writes their PATH into the file `path`.
#
# The mock has only names that nixpkgs has, so a misspelt name fails. `from` names the file of
# https://github.com/NixOS/nixpkgs that defines it, and the commit of that file (read on 2026-11-24). The revision in
# flake.lock was not available. "mid-2026" is a copy of all-packages.nix without its commit: its newest Go is 1.26, mariadb is
# mariadb_114, docker is docker_29. A copy of aliases.nix with entries up to 2026-07-01, after the branch of nixos-26.05,
# neither renames nor removes bazel-*, go*, jq, kcat or yamllint.
{
  outputs =
    { self }:
    let
      from =
        file: commit: value:
        value;

      genAttrs =
        names: make:
        builtins.listToAttrs (
          map (name: {
            inherit name;
            value = make name;
          }) names
        );

      path =
        if builtins.pathExists ./path then
          builtins.readFile ./path
        else
          "/usr/local/go/bin:/usr/local/bin:/usr/bin:/bin";

      binPath =
        packages: builtins.concatStringsSep ":" (map (package: "${package}/bin") packages ++ [ path ]);

      packages =
        system:
        let
          # `nix develop` wants a builder of the name bash.
          build =
            name: environment: script:
            derivation (
              {
                inherit name system script;
                builder = "/bin/bash";
                args = [
                  "-euc"
                  ''eval "$script"''
                ];
                PATH = path;
              }
              // environment
            );

          # A package NAME with an executable for each of PROGRAMS. A program that the machine lacks exits with 127.
          programs =
            name: programs:
            build name { programs = toString programs; } ''
              mkdir -p "$out/bin"
              for program in $programs; do
                if found=$(command -v "$program"); then
                  printf '#!/bin/sh\nexec %s "$@"\n' "$found"
                else
                  printf '#!/bin/sh\necho "%s: not on this machine" >&2\nexit 127\n' "$program"
                fi >"$out/bin/$program"
                chmod +x "$out/bin/$program"
              done
            '';
          program = name: programs name [ name ];

          # A package NAME with one executable of that name and this TEXT; CHECK tests it.
          written =
            name: text: check:
            build name { inherit text; } ''
              mkdir -p "$out/bin"
              printf '%s' "$text" >"$out/bin/${name}"
              chmod +x "$out/bin/${name}"
              ${check}
            '';
        in
        {
          # The shell that `nix develop` itself looks for.
          bashInteractive = from "pkgs/top-level/all-packages.nix" "mid-2026" (program "bash");
          bazel-buildtools = from "pkgs/by-name/ba/bazel-buildtools/package.nix" "0b18bc01ef6e" (
            programs "bazel-buildtools" [
              "buildifier"
              "buildozer"
            ]
          );
          bazel-gazelle = from "pkgs/by-name/ba/bazel-gazelle/package.nix" "0b73a0c21143" (program "gazelle");
          # Debian's Bazel is no Bazelisk, but it answers to the same arguments.
          bazelisk = from "pkgs/by-name/ba/bazelisk/package.nix" "08afd3a8e625" (
            written "bazelisk" ''
              #!/bin/sh
              PATH=${path}
              exec bazel "$@"
            '' ""
          );
          coreutils = from "pkgs/top-level/all-packages.nix" "mid-2026" (
            programs "coreutils" [
              "chmod"
              "mkdir"
              "mv"
              "od"
              "tr"
            ]
          );
          docker-client = from "pkgs/top-level/all-packages.nix" "mid-2026" (program "docker");
          docker-compose = from "pkgs/by-name/do/docker-compose/package.nix" "0a2c8a5824f4" (
            program "docker-compose"
          );
          findutils = from "pkgs/by-name/fi/findutils/package.nix" "0a2c8a5824f4" (program "find");
          go-containerregistry = from "pkgs/by-name/go/go-containerregistry/package.nix" "032779a7b369" (
            program "crane"
          );
          go_1_26 = from "pkgs/top-level/all-packages.nix" "mid-2026" (
            programs "go" [
              "go"
              "gofmt"
            ]
          );
          golangci-lint = from "pkgs/by-name/go/golangci-lint/package.nix" "047d600fc879" (
            program "golangci-lint"
          );
          gopls = from "pkgs/by-name/go/gopls/package.nix" "01f01ea7c07a" (program "gopls");
          jq = from "pkgs/by-name/jq/jq/package.nix" "072bd877d3fa" (program "jq");
          kcat = from "pkgs/by-name/kc/kcat/package.nix" "032779a7b369" (program "kcat");
          mariadb = from "pkgs/top-level/all-packages.nix" "mid-2026" {
            # in passthru, pkgs/servers/sql/mariadb/default.nix of late 2025
            client = program "mariadb";
          };
          mkShellNoCC = from "pkgs/top-level/all-packages.nix" "mid-2026" (
            { packages, shellHook, ... }@arguments:
            build "nix-shell" (
              removeAttrs arguments [ "packages" ]
              // {
                outputs = [ "out" ]; # `nix develop` looks for it
                PATH = binPath packages;
              }
            ) ''export >"$out"''
          );
          # Debian has no nixfmt; this one only finds syntax errors.
          nixfmt = from "pkgs/by-name/ni/nixfmt/package.nix" "281ffa987c25" (
            written "nixfmt" ''
              #!/bin/sh
              [ "$1" != --check ] || shift
              for file; do
                nix-instantiate --store dummy:// --parse "$file" >/dev/null || exit
              done
            '' ""
          );
          runCommand = from "pkgs/build-support/trivial-builders/default.nix" "77d57157d61d" (
            name:
            { nativeBuildInputs }:
            build name { PATH = binPath nativeBuildInputs; }
          );
          shellcheck = from "pkgs/top-level/all-packages.nix" "mid-2026" (program "shellcheck");
          writeShellApplication = from "pkgs/build-support/trivial-builders/default.nix" "77d57157d61d" (
            {
              name,
              meta,
              runtimeInputs,
              text,
            }:
            written name ''
              #!/bin/bash
              set -o errexit -o nounset -o pipefail
              export PATH="${binPath runtimeInputs}:$PATH"
              ${text}
            '' ''shellcheck "$out/bin/${name}"''
            // {
              inherit meta;
            }
          );
          writeShellScriptBin = from "pkgs/build-support/trivial-builders/default.nix" "77d57157d61d" (
            name: text: written name "#!/bin/bash\n${text}" ""
          );
          yamllint = from "pkgs/by-name/ya/yamllint/package.nix" "065def54ed70" (program "yamllint");
        };
    in
    {
      lib.genAttrs = from "lib/attrsets.nix" "always there" genAttrs;

      legacyPackages = genAttrs [
        "x86_64-linux"
        "aarch64-linux"
        "aarch64-darwin"
      ] packages;
    };
}
