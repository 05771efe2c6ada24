// Package docs is the documentation: the written pages of this folder and of
// reference, and the pages of reference that docs/generate writes from the
// code. Tests compare the written ones with the code.
package docs

import "embed"

//go:generate go run ./generate/cmd/generate

// Reference holds the descriptions that programs can read: the HTTP
// APIs (reference/ms1.openapi.yaml and so on, OpenAPI 3.1) and the message
// (reference/message.schema.json, JSON Schema 2020-12).
//
//go:embed reference/*.yaml reference/*.json
var Reference embed.FS
