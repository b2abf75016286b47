// Exports spans with OpenTelemetry's own Go exporter, configured by its environment variables alone.
// Usage: program COUNT. Prints the trace id of each span; exits 1 when they were not taken.
package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	count, err := strconv.Atoi(os.Args[1])
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	exporter, err := otlptracegrpc.New(ctx)
	if err != nil {
		return err
	}
	var failed error
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { failed = err }))
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter))
	tracer := provider.Tracer("sealward.invalid/conformance/otlp")
	for n := 0; n < count; n++ {
		_, span := tracer.Start(ctx, "canary-go-span")
		span.SetAttributes(attribute.String("patient", "canary-go"), attribute.Int("sealward.rows", n))
		span.End()
		fmt.Println(span.SpanContext().TraceID())
	}
	if err := provider.Shutdown(ctx); err != nil {
		return err
	}
	return failed
}
