// Appends to a log kept by Tessera's POSIX driver, from a number of writers, and prints one JSON line.
//
// Each writer has one entry on its way: it sends the next when Tessera says that the last is durable.
package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/client"
	"github.com/transparency-dev/tessera/storage/posix"
	"golang.org/x/mod/sumdb/note"
)

func main() {
	dir := flag.String("dir", "", "an empty folder on the disk to measure")
	writers := flag.Int("writers", 1, "writers")
	seconds := flag.Float64("seconds", 2, "measured time")
	warm := flag.Float64("warm", 0.3, "time before it")
	size := flag.Int("bytes", 1024, "size of an entry")
	age := flag.Duration("batch-age", 5*time.Millisecond, "longest wait for a batch to fill")
	receipts := flag.Bool("receipts", false, "wait for a checkpoint and build an inclusion proof too")
	flag.Parse()
	if err := run(*dir, *writers, *seconds, *warm, *size, *age, *receipts); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(dir string, writers int, seconds, warm float64, size int, age time.Duration, receipts bool) error {
	ctx := context.Background()
	secret, _, err := note.GenerateKey(rand.Reader, "bench.example/tessera")
	if err != nil {
		return err
	}
	signer, err := note.NewSigner(secret)
	if err != nil {
		return err
	}
	driver, err := posix.New(ctx, posix.Config{Path: dir})
	if err != nil {
		return err
	}
	options := tessera.NewAppendOptions().
		WithCheckpointSigner(signer).
		WithCheckpointInterval(100*time.Millisecond).
		WithBatching(256, age)
	appender, shutdown, reader, err := tessera.NewAppender(ctx, driver, options)
	if err != nil {
		return err
	}
	prove := prover(ctx, reader)
	var counting, stop atomic.Bool
	var failed atomic.Pointer[error]
	taken := make([][]float64, writers)
	var group sync.WaitGroup
	for w := range writers {
		group.Add(1)
		go func() {
			defer group.Done()
			for !stop.Load() {
				data := make([]byte, size)
				_, _ = rand.Read(data)
				began := time.Now()
				future := appender.Add(ctx, tessera.NewEntry(data))
				var err error
				if receipts {
					err = prove(future)
				} else {
					_, err = future()
				}
				if err != nil {
					failed.Store(&err)
					return
				}
				if counting.Load() {
					taken[w] = append(taken[w], float64(time.Since(began).Microseconds()))
				}
			}
		}()
	}
	time.Sleep(time.Duration(warm * float64(time.Second)))
	counting.Store(true)
	began := time.Now()
	time.Sleep(time.Duration(seconds * float64(time.Second)))
	elapsed := time.Since(began).Seconds()
	counting.Store(false)
	stop.Store(true)
	group.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	all := []float64{}
	for _, some := range taken {
		all = append(all, some...)
	}
	sort.Float64s(all)
	at := func(share float64) float64 {
		if len(all) == 0 {
			return 0
		}
		return all[int(share*float64(len(all)-1))]
	}
	_ = shutdown(ctx)
	return json.NewEncoder(os.Stdout).Encode(map[string]any{
		"per_second": float64(len(all)) / elapsed,
		"p50_us":     at(0.5),
		"p99_us":     at(0.99),
	})
}

// prover returns a function that waits until an entry is published and builds its proof. What one
// checkpoint allows is shared by all writers.
func prover(ctx context.Context, reader tessera.LogReader) func(tessera.IndexFuture) error {
	awaiter := tessera.NewPublicationAwaiter(ctx, reader.ReadCheckpoint, 5*time.Millisecond)
	var lock sync.Mutex
	var size uint64
	var builder *client.ProofBuilder
	return func(future tessera.IndexFuture) error {
		index, checkpoint, err := awaiter.Await(ctx, future)
		if err != nil {
			return err
		}
		published, err := strconv.ParseUint(strings.Split(string(checkpoint), "\n")[1], 10, 64)
		if err != nil {
			return err
		}
		lock.Lock()
		defer lock.Unlock()
		if builder == nil || published != size {
			builder, err = client.NewProofBuilder(ctx, published, reader.ReadTile)
			if err != nil {
				return err
			}
			size = published
		}
		_, err = builder.InclusionProof(ctx, index.Index)
		return err
	}
}
