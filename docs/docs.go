// Package docs is the documentation: the written pages in this folder and the
// generated ones in reference, for the tests that hold the code against them.
//
// What is generated has one source, the code and its comments, and one
// generator, docs/generate. Its other texts lie beside that.
package docs

import "embed"

//go:generate go run ./generate/cmd/generate

// Reference holds the generated descriptions that programs can read: the HTTP
// APIs (reference/ms1.openapi.yaml and so on, OpenAPI 3.1) and the message
// (reference/message.schema.json, JSON Schema 2020-12).
//
//go:embed reference/*.yaml reference/*.json
var Reference embed.FS
