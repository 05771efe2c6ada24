// Command generate writes the generated pages of docs/reference: go generate ./...
package main

import (
	"fmt"
	"os"

	"github.com/tricycle-relay/tricycle/docs/generate"
)

func main() {
	// go generate starts it in docs, where its directive is; bazel run names
	// the tree.
	root := ".."
	if named := os.Getenv("BUILD_WORKSPACE_DIRECTORY"); named != "" {
		root = named
	}
	if err := generate.Write(root); err != nil {
		fmt.Fprintf(os.Stderr, "generate: %v\n", err)
		os.Exit(1)
	}
}
