// Command tlog verifies a Sealward log directory and receipts with golang.org/x/mod/sumdb alone.
//
// It shares no code with Sealward. It checks the signed note of the checkpoint, authenticates every
// tile through tlog.TileHashReader, hashes every entry of every bundle, and proves and checks
// records. With -receipt it reads a C2SP tlog-proof, checks its inclusion proof and that its tree is
// a beginning of the log; with -request, -response and -model (files; any may be left out) and
// -outcome it also checks what call the receipt is about.
//
// The exit status is 0 if everything holds, 1 if something does not, 2 for wrong usage.
package main

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const (
	tileHeight = 8
	tileWidth  = 1 << tileHeight
	saltSize   = 32
	prefixSize = 1 + 16 + 32
)

func main() {
	log := flag.String("log", "", "directory of the log")
	vkey := flag.String("vkey", "", "file of verifier keys, one a line")
	receipt := flag.String("receipt", "", "tlog-proof file (optional)")
	request := flag.String("request", "", "file with the request message of the receipt's call")
	response := flag.String("response", "", "file with the response message of the receipt's call")
	model := flag.String("model", "", "model file of the receipt's call")
	outcome := flag.Int("outcome", -1, "outcome byte of the receipt's call; -1 leaves the call unchecked")
	flag.Parse()
	if *log == "" || *vkey == "" || flag.NArg() != 0 {
		flag.Usage()
		os.Exit(2)
	}
	if err := run(*log, *vkey, *receipt, call{*request, *response, *model, *outcome}); err != nil {
		fmt.Fprintln(os.Stderr, "FAILED:", err)
		os.Exit(1)
	}
}

func run(log, vkey, receipt string, call call) error {
	verifiers, err := readVerifiers(vkey)
	if err != nil {
		return err
	}
	signed, err := os.ReadFile(filepath.Join(log, "checkpoint"))
	if err != nil {
		return err
	}
	head, err := openCheckpoint(signed, verifiers)
	if err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	hashes := tlog.TileHashReader(head.tree, dirTiles{log})
	if head.tree.N > 0 {
		if err := checkLog(log, head.tree, hashes); err != nil {
			return err
		}
	}
	fmt.Printf("log %s\nsize %d\nroot %s\n", head.origin, head.tree.N, head.tree.Hash)
	if receipt == "" {
		return nil
	}
	text, err := os.ReadFile(receipt)
	if err != nil {
		return err
	}
	index, err := checkReceipt(text, verifiers, head, hashes, call)
	if err != nil {
		return fmt.Errorf("receipt: %w", err)
	}
	fmt.Printf("receipt %d\n", index)
	return nil
}

// A checkpoint is a tree head and the log that it is of.
type checkpoint struct {
	origin string
	tree   tlog.Tree
}

func readVerifiers(file string) (note.Verifiers, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var list []note.Verifier
	for _, line := range strings.Fields(string(text)) {
		verifier, err := note.NewVerifier(line)
		if err != nil {
			return nil, fmt.Errorf("verifier key: %w", err)
		}
		list = append(list, verifier)
	}
	return note.VerifierList(list...), nil
}

func openCheckpoint(signed []byte, verifiers note.Verifiers) (checkpoint, error) {
	var head checkpoint
	opened, err := note.Open(signed, verifiers)
	if err != nil {
		return head, err
	}
	lines := strings.Split(opened.Text, "\n")
	if len(lines) != 4 || lines[0] == "" || lines[3] != "" {
		return head, errors.New("not three lines")
	}
	head.origin = lines[0]
	head.tree.N, err = strconv.ParseInt(lines[1], 10, 64)
	if err != nil || strconv.FormatInt(head.tree.N, 10) != lines[1] || head.tree.N < 0 {
		return head, errors.New("malformed size")
	}
	head.tree.Hash, err = tlog.ParseHash(lines[2])
	if err != nil {
		return head, err
	}
	for _, sig := range opened.Sigs {
		if sig.Name == head.origin {
			return head, nil
		}
	}
	return head, errors.New("not signed by the log that it names")
}

func checkLog(dir string, tree tlog.Tree, hashes tlog.HashReader) error {
	root, err := tlog.TreeHash(tree.N, hashes)
	if err != nil {
		return fmt.Errorf("tree: %w", err)
	}
	if root != tree.Hash {
		return errors.New("tree: root is not the signed one")
	}
	for first := int64(0); first < tree.N; first += tileWidth {
		width := min(tileWidth, tree.N-first)
		if err := checkBundle(dir, first, width, hashes); err != nil {
			return err
		}
	}
	for _, index := range []int64{0, tree.N / 2, tree.N - 1} {
		hash, err := hashes.ReadHashes([]int64{tlog.StoredHashIndex(0, index)})
		if err != nil {
			return err
		}
		proof, err := tlog.ProveRecord(tree.N, index, hashes)
		if err != nil {
			return fmt.Errorf("record %d: %w", index, err)
		}
		if err := tlog.CheckRecord(proof, tree.N, tree.Hash, index, hash[0]); err != nil {
			return fmt.Errorf("record %d: %w", index, err)
		}
	}
	return nil
}

func checkBundle(dir string, first, width int64, hashes tlog.HashReader) error {
	tile := tlog.Tile{H: tileHeight, L: -1, N: first / tileWidth, W: int(width)}
	data, err := readTile(dir, tile)
	if err != nil {
		return err
	}
	indexes := make([]int64, width)
	for i := range indexes {
		indexes[i] = tlog.StoredHashIndex(0, first+int64(i))
	}
	want, err := hashes.ReadHashes(indexes)
	if err != nil {
		return fmt.Errorf("tiles of entry %d: %w", first, err)
	}
	for i := range want {
		if len(data) < 2 || len(data) < 2+int(binary.BigEndian.Uint16(data)) {
			return fmt.Errorf("entry %d: bundle ends too early", first+int64(i))
		}
		end := 2 + int(binary.BigEndian.Uint16(data))
		entry := data[2:end]
		if tlog.RecordHash(entry) != want[i] {
			return fmt.Errorf("entry %d: hash is not the one in the tree", first+int64(i))
		}
		if len(entry) <= prefixSize || entry[0] != 1 {
			return fmt.Errorf("entry %d: not a leaf of version 1", first+int64(i))
		}
		data = data[end:]
	}
	if len(data) != 0 {
		return fmt.Errorf("bundle of entry %d holds more than its entries", first)
	}
	return nil
}

// tilePath turns x/mod's paths (tile/8/0/…, tile/8/data/…) into those of tlog-tiles.
func tilePath(tile tlog.Tile) string {
	path := strings.TrimPrefix(tile.Path(), "tile/8/")
	if rest, ok := strings.CutPrefix(path, "data/"); ok {
		path = "entries/" + rest
	}
	return "tile/" + path
}

// readTile reads a tile or bundle; a partial one may have given way to the full one.
func readTile(dir string, tile tlog.Tile) ([]byte, error) {
	data, err := os.ReadFile(filepath.Join(dir, tilePath(tile)))
	if tile.W == tileWidth || !errors.Is(err, fs.ErrNotExist) {
		return data, err
	}
	full := tile
	full.W = tileWidth
	data, fullErr := os.ReadFile(filepath.Join(dir, tilePath(full)))
	if fullErr != nil {
		return nil, err
	}
	if tile.L >= 0 {
		return data[:min(len(data), tile.W*tlog.HashSize)], nil
	}
	end := 0
	for range tile.W {
		if len(data) < end+2 {
			return data, nil
		}
		end += 2 + int(binary.BigEndian.Uint16(data[end:]))
	}
	return data[:min(len(data), end)], nil
}

// dirTiles serves the tiles of a directory to tlog.TileHashReader.
type dirTiles struct{ dir string }

func (d dirTiles) Height() int                     { return tileHeight }
func (d dirTiles) SaveTiles([]tlog.Tile, [][]byte) {}

func (d dirTiles) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	data := make([][]byte, len(tiles))
	for i, tile := range tiles {
		var err error
		if data[i], err = readTile(d.dir, tile); err != nil {
			return nil, err
		}
	}
	return data, nil
}

// A call names the files with what a receipt should be about.
type call struct {
	request, response, model string
	outcome                  int
}

func (c call) binding(salt []byte) ([]byte, error) {
	material := append([]byte("sealward/binding/v1\n"), salt...)
	for _, file := range []string{c.request, c.response, c.model} {
		var digest [32]byte
		if file != "" {
			data, err := os.ReadFile(file)
			if err != nil {
				return nil, err
			}
			digest = sha256.Sum256(data)
		}
		material = append(material, digest[:]...)
	}
	sum := sha256.Sum256(append(material, byte(c.outcome)))
	return sum[:], nil
}

func checkReceipt(
	text []byte, verifiers note.Verifiers, log checkpoint, hashes tlog.HashReader, call call,
) (int64, error) {
	head, signed, found := bytes.Cut(text, []byte("\n\n"))
	lines := strings.Split(string(head), "\n")
	if !found || len(lines) < 3 || lines[0] != "c2sp.org/tlog-proof@v1" {
		return 0, errors.New("not a tlog-proof")
	}
	extra64, ok := strings.CutPrefix(lines[1], "extra ")
	if !ok {
		return 0, errors.New("no extra line")
	}
	extra, err := base64.StdEncoding.Strict().DecodeString(extra64)
	if err != nil || len(extra) <= saltSize+prefixSize {
		return 0, errors.New("extra line holds no salt and leaf")
	}
	index64, ok := strings.CutPrefix(lines[2], "index ")
	if !ok {
		return 0, errors.New("no index line")
	}
	index, err := strconv.ParseInt(index64, 10, 64)
	if err != nil || strconv.FormatInt(index, 10) != index64 {
		return 0, errors.New("malformed index")
	}
	var proof tlog.RecordProof
	for _, line := range lines[3:] {
		hash, err := tlog.ParseHash(line)
		if err != nil {
			return 0, err
		}
		proof = append(proof, hash)
	}
	then, err := openCheckpoint(signed, verifiers)
	if err != nil {
		return 0, err
	}
	salt, leaf := extra[:saltSize], extra[saltSize:]
	if err := tlog.CheckRecord(proof, then.tree.N, then.tree.Hash, index, tlog.RecordHash(leaf)); err != nil {
		return 0, err
	}
	if then.origin != log.origin || then.tree.N > log.tree.N {
		return 0, errors.New("checkpoint is of another or of a newer log")
	}
	if then.tree.N < log.tree.N {
		growth, err := tlog.ProveTree(log.tree.N, then.tree.N, hashes)
		if err != nil {
			return 0, err
		}
		if err := tlog.CheckTree(growth, log.tree.N, log.tree.Hash, then.tree.N, then.tree.Hash); err != nil {
			return 0, err
		}
	} else if then.tree.Hash != log.tree.Hash {
		return 0, errors.New("another root for the same size")
	}
	if call.outcome < 0 {
		return index, nil
	}
	binding, err := call.binding(salt)
	if err != nil {
		return 0, err
	}
	if subtle.ConstantTimeCompare(binding, leaf[17:prefixSize]) != 1 {
		return 0, errors.New("about another call")
	}
	return index, nil
}
