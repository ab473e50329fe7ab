<?php
namespace App\Stores;

use App\Base;
use App\Models\{Item, Kept as K};
use function App\helper;
require_once __DIR__ . '/lib.php';
include 'other.php';

const LIMIT = 8;
define('MODE', 'r');

/**
 * Keeps items.
 */
final class Store extends Base implements Keeper
{
    use Logs;
    public const MAX = 1;
    private array $items = [], $others;

    public function __construct(private string $path) {}

    // Keeps one.
    public static function keep(Item $item): ?K
    {
        $f = fn ($x) => $x;
        helper($item);
        self::check(new \App\Check($item))->run();
        return null;
    }
}

interface Keeper { public function get(); }
trait Logs { function log() {} }
enum State: string { case Open = 'o'; case Closed = 'c'; }

function open_store($path) { return new Store($path); }
