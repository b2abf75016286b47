// Command writelog writes a small log with golang.org/x/mod/sumdb alone, so that Sealward's verifier
// can be tried on a log that Sealward did not make: writelog DIR SIZE puts the log into DIR/log and
// its verifier key into DIR/log.vkey.
package main

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const origin = "go.example/log"

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: writelog DIR SIZE")
		os.Exit(2)
	}
	size, err := strconv.ParseInt(os.Args[2], 10, 64)
	if err == nil {
		err = write(os.Args[1], size)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "FAILED:", err)
		os.Exit(1)
	}
}

// leaf returns an entry with the layout of a Sealward leaf, of a length that differs a little.
func leaf(index int64) []byte {
	id := sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(index)))
	return append(append([]byte{1}, id[:16]...), make([]byte, 32+73+index%5)...)
}

func write(dir string, size int64) error {
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		hashes := make([]tlog.Hash, len(indexes))
		for i, index := range indexes {
			hashes[i] = stored[index]
		}
		return hashes, nil
	})
	for i := range size {
		hashes, err := tlog.StoredHashes(i, leaf(i), reader)
		if err != nil {
			return err
		}
		stored = append(stored, hashes...)
	}
	for _, tile := range tlog.NewTiles(8, 0, size) {
		data, err := tlog.ReadTileData(tile, reader)
		if err != nil {
			return err
		}
		if err := put(dir, tile.Path(), data); err != nil {
			return err
		}
		if tile.L != 0 {
			continue
		}
		var bundle []byte
		for i := tile.N * 256; i < tile.N*256+int64(tile.W); i++ {
			bundle = binary.BigEndian.AppendUint16(bundle, uint16(len(leaf(i))))
			bundle = append(bundle, leaf(i)...)
		}
		tile.L = -1
		if err := put(dir, tile.Path(), bundle); err != nil {
			return err
		}
	}
	root, err := tlog.TreeHash(size, reader)
	if err != nil {
		return err
	}
	return sign(dir, fmt.Sprintf("%s\n%d\n%s\n", origin, size, root))
}

// sign writes the checkpoint, signed with a new key, and the key's public half.
func sign(dir, text string) error {
	private, public, err := note.GenerateKey(rand.Reader, origin)
	if err != nil {
		return err
	}
	signer, err := note.NewSigner(private)
	if err != nil {
		return err
	}
	signed, err := note.Sign(&note.Note{Text: text}, signer)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "log.vkey"), []byte(public+"\n"), 0o600); err != nil {
		return err
	}
	return put(dir, "checkpoint", signed)
}

// put writes a file of the log; x/mod's paths (tile/8/0/…, tile/8/data/…) become those of tlog-tiles.
func put(dir, path string, data []byte) error {
	path = strings.Replace(path, "tile/8/data/", "tile/entries/", 1)
	path = strings.Replace(path, "tile/8/", "tile/", 1)
	file := filepath.Join(dir, "log", path)
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	return os.WriteFile(file, data, 0o600)
}
