// Command loadgen keeps a number of unary gRPC calls in flight and measures them.
//
// It sends one serialised message over and over through a codec that copies nothing, over plaintext
// or mutual TLS 1.3, and verifies of an answer what costs nothing: that it is there, that it has at
// least -min bytes, and with -receipt that its trailers carry a receipt. A line "start" and a line
// "stop" on standard output bracket the measured time, so that the caller can read the servers'
// counters at the same moments; then one line of JSON follows.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
)

const method = "/inference.GRPCInferenceService/ModelInfer"

// raw hands message bytes through. Its name is that of protobuf, because that is what they are.
type raw struct{}

func (raw) Name() string { return "proto" }

func (raw) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}

func (raw) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

var _ encoding.CodecV2 = raw{}

type result struct {
	InFlight  int                `json:"in_flight"`
	Conns     int                `json:"connections"`
	Seconds   float64            `json:"seconds"`
	Calls     int                `json:"calls"`
	Errors    int64              `json:"errors"`
	LastError string             `json:"last_error,omitempty"`
	PerSecond float64            `json:"per_second"`
	Micros    map[string]float64 `json:"latency_us"`
	CPU       float64            `json:"generator_cpu"`
}

func main() {
	address := flag.String("address", "", "host:port")
	body := flag.String("body", "", "file with the serialised request")
	inFlight := flag.Int("inflight", 1, "calls in flight")
	conns := flag.Int("conns", 1, "connections that share them")
	measured := flag.Duration("measure", 2*time.Second, "measured time")
	warm := flag.Duration("warm", 500*time.Millisecond, "time before that")
	profile := flag.String("profile", "", "folder with ca.pem, cert.pem, key.pem; empty = plaintext")
	name := flag.String("servername", "", "name in the server's certificate")
	tokenFile := flag.String("token", "", "file with the session token")
	least := flag.Int("min", 1, "least bytes of an answer")
	receipt := flag.Bool("receipt", false, "an answer without receipt is an error")
	flag.Parse()

	message, err := os.ReadFile(*body)
	fatal(err)
	token := ""
	if *tokenFile != "" {
		data, err := os.ReadFile(*tokenFile)
		fatal(err)
		token = "Bearer " + string(data)
	}
	channels := make([]*grpc.ClientConn, *conns)
	for i := range channels {
		channels[i], err = grpc.NewClient("passthrough:///"+*address,
			grpc.WithTransportCredentials(transport(*profile, *name)),
			grpc.WithDefaultCallOptions(grpc.ForceCodecV2(raw{}), grpc.WaitForReady(true)))
		fatal(err)
	}

	var sequence, errors atomic.Int64
	var measuring, stopping atomic.Bool
	var lastError atomic.Value
	var workers sync.WaitGroup
	latencies := make([][]int64, *inFlight)
	for i := range *inFlight {
		workers.Add(1)
		go func() {
			defer workers.Done()
			channel := channels[i%len(channels)]
			for !stopping.Load() {
				ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
				if token != "" {
					ctx = metadata.NewOutgoingContext(ctx, metadata.MD{
						"authorization": {token},
						"sealward-seq":  {strconv.FormatInt(sequence.Add(1), 10)},
					})
				}
				var answer []byte
				var trailer metadata.MD
				began := time.Now()
				err := channel.Invoke(ctx, method, &message, &answer, grpc.Trailer(&trailer))
				took := time.Since(began).Nanoseconds()
				cancel()
				if err == nil && len(answer) < *least {
					err = fmt.Errorf("answer of %d bytes", len(answer))
				}
				if err == nil && *receipt && len(trailer["sealward-receipt-bin"]) != 1 {
					err = fmt.Errorf("answer without receipt")
				}
				if err != nil {
					errors.Add(1)
					lastError.Store(err.Error())
					time.Sleep(10 * time.Millisecond)
					continue
				}
				if measuring.Load() && !stopping.Load() {
					latencies[i] = append(latencies[i], took)
				}
			}
		}()
	}
	time.Sleep(*warm)
	before := cpu()
	measuring.Store(true)
	began := time.Now()
	fmt.Println("start")
	time.Sleep(*measured)
	stopping.Store(true)
	seconds := time.Since(began).Seconds()
	fmt.Println("stop")
	used := cpu() - before
	workers.Wait()

	all := slices.Concat(latencies...)
	slices.Sort(all)
	out := result{
		InFlight: *inFlight, Conns: *conns, Seconds: seconds, Calls: len(all), Errors: errors.Load(),
		PerSecond: float64(len(all)) / seconds, CPU: used / seconds, Micros: map[string]float64{},
	}
	if text, ok := lastError.Load().(string); ok {
		out.LastError = text
	}
	for label, share := range map[string]float64{
		"p10": .1, "p50": .5, "p90": .9, "p99": .99, "p999": .999, "max": 1,
	} {
		if len(all) > 0 {
			out.Micros[label] = float64(all[int(share*float64(len(all)-1))]) / 1e3
		}
	}
	fatal(json.NewEncoder(os.Stdout).Encode(out))
}

func transport(profile, name string) credentials.TransportCredentials {
	if profile == "" {
		return insecure.NewCredentials()
	}
	pair, err := tls.LoadX509KeyPair(
		filepath.Join(profile, "cert.pem"), filepath.Join(profile, "key.pem"))
	fatal(err)
	bundle, err := os.ReadFile(filepath.Join(profile, "ca.pem"))
	fatal(err)
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(bundle) {
		fatal(fmt.Errorf("ca.pem holds no certificate"))
	}
	return credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{pair}, RootCAs: roots, ServerName: name,
		MinVersion: tls.VersionTLS13,
	})
}

func cpu() float64 {
	var usage syscall.Rusage
	fatal(syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return float64(usage.Utime.Nano()+usage.Stime.Nano()) / 1e9
}

func fatal(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
