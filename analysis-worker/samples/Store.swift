import Foundation
@testable import struct Kept.Item

/// Keeps items.
public final class Store<T>: Base, Keeper {
    private var items: [T] = []
    var size: Int { let local = items.count; return local }
    static let limit = 8

    init(path: String) { super.init(path: path) }
    deinit { close() }
    subscript(index: Int) -> T { return items[index] }

    // Keeps one.
    @discardableResult
    func keep(_ item: T) -> Bool {
        func local() -> Int { 1 }
        items.append(item)
        return true
    }
}

protocol Keeper { associatedtype Item; var size: Int { get }; func keep(_ item: Item) -> Bool }
struct Point { let x: Int, y: Int }
enum State { case open, closed(reason: String) }
extension Store { func more() {} }
typealias Items = [String]
func open(path: String) -> Store<Int> { return Store<Int>(path: path) }
