// Package docs embeds the interface descriptions of docs/reference: the OpenAPI
// descriptions and the JSON Schema of the message. Its tests compare the pages
// written by hand with the code.
package docs

import "embed"

//go:generate go run ./generate/cmd/generate

// Reference holds the descriptions that programs can read: the HTTP
// APIs (reference/ms1.openapi.yaml and so on, OpenAPI 3.1) and the message
// (reference/message.schema.json, JSON Schema 2020-12).
//
//go:embed reference/*.yaml reference/*.json
var Reference embed.FS
